"""What is drawn where nobody says otherwise: scenes that pruned models tend to lose, English and Chinese in turn.

Counts, relations, written words in both languages, faces and hands, small things, materials, light, abstract patterns.
Written for this project.
"""

PROMPTS: tuple[str, ...] = (
    "A red bicycle leaning against a white brick wall, morning light, long shadows",
    "三只橘猫并排坐在木窗台上，窗外下着雨，写实摄影",
    "A bookshop window with a sign that reads \"OPEN LATE\", night, wet pavement",
    "书法作品，宣纸上写着“山高水长”四个大字，右下角一枚红色印章",
    "Portrait of an elderly fisherman with a knitted cap, weathered skin, soft overcast light",
    "一位年轻女子双手捧着一杯热茶，手指清晰可见，浅景深",
    "Two blue cups to the left of a yellow teapot on a grey table, product photograph",
    "俯拍一桌川菜，五个盘子，红油，青花瓷，筷子整齐摆放",
    "A glass sphere on black sand reflecting a sunset, macro photograph",
    "雪山脚下的蓝色湖泊，一艘小木船停在岸边，清晨薄雾",
    "A street market in heavy rain, people with transparent umbrellas, neon reflections",
    "水墨画，一只白鹭立在荷塘里，大片留白",
    "A wooden chess set seen from above, the white king lying on its side",
    "现代图书馆内部，螺旋楼梯，阳光从天窗照下，广角镜头",
    "A small robot watering a single green plant on a windowsill, watercolour",
    "一个戴红围巾的小女孩骑在白马上，身后是金色的麦田，油画",
    "Close-up of a bee on a purple lavender flower, every hair sharp, blurred background",
    "复古旅行海报，画面上方写着“杭州”，西湖与断桥，平面插画",
    "An astronaut playing a grand piano in a desert under two moons",
    "四个不同颜色的气球，从左到右依次是红、黄、蓝、绿，白色背景",
    "A handwritten note on lined paper that says \"Back at five\", next to a brass key",
    "夜晚的上海外滩，灯光倒映在江面上，长曝光",
    "Isometric drawing of a tiny kitchen with a stove, a sink and a hanging copper pan",
    "几何图案，深蓝底色上重复的金色六边形，对称，高对比",
)  # fmt: skip
