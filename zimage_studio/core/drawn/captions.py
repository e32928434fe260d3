"""What is said about a scene: English and Chinese, varied, terse to long; and the words the tokenizer must know."""

import random

from zimage_studio.core.drawn.drawings import BACKGROUNDS, COLOURS, OBJECTS, Scene, Thing

ZH_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色", "gray": "灰色",
}  # fmt: skip
ZH_OBJECTS = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星星", "heart": "爱心", "diamond": "菱形",
    "moon": "月亮", "house": "房子", "tree": "树", "fish": "鱼", "flower": "花", "car": "汽车",
}  # fmt: skip
ZH_MEASURES = {"tree": "棵", "fish": "条", "flower": "朵", "car": "辆", "house": "座", "heart": "颗", "star": "颗"}
ZH_POSITIONS = {"center": "中间", "left": "左边", "right": "右边", "top": "上方", "bottom": "下方"}
EN_POSITIONS = {
    "center": ("in the center", "in the middle"), "left": ("on the left",), "right": ("on the right",),
    "top": ("at the top",), "bottom": ("at the bottom",),
}  # fmt: skip
EN_SIZES = {"small": ("small", "little"), "medium": ("",), "": ("",), "big": ("big", "large")}
ZH_SIZES = {"small": "小", "medium": "", "": "", "big": "大"}
CHINESE_SHARE = 0.45
TERSE_SHARE, LONG_SHARE = 0.15, 0.08


def caption(scene: Scene, rng: random.Random, *, chinese: bool | None = None, complete: bool = False) -> str:
    """One of many ways to say what `scene` shows.

    "striped" and 条纹 without a direction always mean horizontal stripes, "gradient" and 渐变 always mean light at
    the top. `complete` mentions everything (evaluation); otherwise a plain background may go unsaid.
    """
    if chinese is None:
        chinese = rng.random() < CHINESE_SHARE
    style = rng.random()
    if not complete and style < TERSE_SHARE:
        return (_terse_zh if chinese else _terse_en)(scene, rng)
    long = not complete and style > 1 - LONG_SHARE
    say_background = complete or long or scene.pattern != "plain" or rng.random() < 0.88
    return (_zh if chinese else _en)(scene, rng, say_background, long)


def words() -> list[str]:
    """A word list for the byte-level BPE: each word of the grammar becomes one token, nothing merges across words."""
    english = {
        *COLOURS, *BACKGROUNDS, *OBJECTS, *EN_POSITIONS, "small", "little", "big", "large", "plain", "striped",
        "stripes", "horizontal", "vertical", "gradient", "light", "background", "a", "an", "the", "on", "in",
        "at", "and",
        "with",
        "of", "middle", "picture", "drawing", "draw", "image", "there", "is", "simple", "nice", "children", "book",
        "behind", "it", "this", "shows", "clean", "style", "flat", "colors", "icon", "user", "assistant",
    }  # fmt: skip
    chinese = [
        *ZH_COLOURS.values(), *ZH_OBJECTS.values(), *ZH_POSITIONS.values(), "背景", "横条纹", "竖条纹", "条纹", "渐变",
        "纯色", "一个", "图片", "画面", "画", "有", "的", "在", "大", "小", "是", "这", "张", "，", "。", "：",
        *ZH_MEASURES.values(), "一", "个", "简单", "干净", "图标", "风格", "后面",
    ]  # fmt: skip
    listed: list[str] = []
    for word in sorted(english):
        listed += [word, f" {word}", word.capitalize()] * 20
    listed += chinese * 20
    listed += sorted(set("".join(chinese))) * 5
    return listed + [chr(code) for code in range(33, 127)]


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _background_en(scene: Scene, rng: random.Random) -> str:
    colour = scene.background
    return rng.choice(
        {
            "plain": (f"{colour} background", f"{colour} background", f"plain {colour} background"),
            "horizontal stripes": (
                f"{colour} background with horizontal stripes",
                f"{colour} horizontal stripes background",
                f"striped {colour} background",
            ),
            "vertical stripes": (
                f"{colour} background with vertical stripes",
                f"{colour} vertical stripes background",
            ),
            "gradient": (f"{colour} gradient background", f"{colour} gradient background, light at the top"),
        }[scene.pattern]
    )


def _background_zh(scene: Scene, rng: random.Random) -> str:
    colour = ZH_COLOURS[scene.background]
    return rng.choice(
        {
            "plain": (f"{colour}背景", f"{colour}背景", f"{colour}纯色背景"),
            "horizontal stripes": (f"{colour}横条纹背景", f"{colour}条纹背景"),
            "vertical stripes": (f"{colour}竖条纹背景",),
            "gradient": (f"{colour}渐变背景",),
        }[scene.pattern]
    )


def _thing_en(thing: Thing, rng: random.Random, *, article: bool = True) -> str:
    text = " ".join(part for part in (rng.choice(EN_SIZES[thing.size]), thing.colour, thing.name) if part)
    return _article(text) if article else text


def _thing_zh(thing: Thing, rng: random.Random) -> str:
    measure = rng.choice((ZH_MEASURES.get(thing.name, "个"), "个"))
    link = rng.choice(("", "的"))
    return f"一{measure}{ZH_SIZES[thing.size]}{ZH_COLOURS[thing.colour]}{link}{ZH_OBJECTS[thing.name]}"


def _terse_en(scene: Scene, rng: random.Random) -> str:
    parts = [_thing_en(thing, rng, article=False) + _side_en(thing, scene, rng) for thing in scene.things]
    return ", ".join([*parts, _background_en(scene, rng)] if scene.pattern != "plain" or rng.random() < 0.5 else parts)


def _terse_zh(scene: Scene, rng: random.Random) -> str:
    parts = []
    for thing in scene.things:
        side = ZH_POSITIONS[thing.position] if thing.position != "center" or len(scene.things) > 1 else ""
        parts.append(f"{side}{ZH_SIZES[thing.size]}{ZH_COLOURS[thing.colour]}{ZH_OBJECTS[thing.name]}")
    return "，".join([*parts, _background_zh(scene, rng)] if scene.pattern != "plain" or rng.random() < 0.5 else parts)


def _side_en(thing: Thing, scene: Scene, rng: random.Random) -> str:
    if thing.position == "center" and len(scene.things) == 1 and rng.random() < 0.5:
        return ""
    return f" {rng.choice(EN_POSITIONS[thing.position])}"


def _en(scene: Scene, rng: random.Random, say_background: bool, long: bool) -> str:
    things = " and ".join(_thing_en(thing, rng) + _side_en(thing, scene, rng) for thing in scene.things)
    background = _background_en(scene, rng)
    if long:
        opening = rng.choice(
            (
                "this is a simple drawing in the style of a children book, it shows",
                "a nice clean icon in flat colors, there is",
            )
        )
        return f"{opening} {things}, and behind it there is {_article(background)}."
    text = things
    if say_background:
        joins = (
            f"{things} on {_article(background)}",
            f"{things}, {background}",
            f"{things} with {_article(background)}",
        )
        text = rng.choice(joins)
    text = rng.choice(("", "", "", "a picture of ", "a drawing of ", "draw ")) + text
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.1 else "")


def _zh(scene: Scene, rng: random.Random, say_background: bool, long: bool) -> str:
    parts = []
    for thing in scene.things:
        what, where = _thing_zh(thing, rng), ZH_POSITIONS[thing.position]
        if len(scene.things) > 1:
            parts.append(f"{where}{rng.choice(('', '有'))}{what}")
        elif thing.position != "center" or rng.random() < 0.4:
            parts.append(rng.choice((f"{what}在{where}", f"{where}有{what}")))
        else:
            parts.append(what)
    text, background = "，".join(parts), _background_zh(scene, rng)
    if long:
        return f"这是一张简单的图片，干净的图标风格，画面{text}，后面是{background}。"
    if say_background:
        text = rng.choice((f"{text}，{background}", f"{background}，{text}"))
    return rng.choice(("", "", "", "画", "图片：")) + text
