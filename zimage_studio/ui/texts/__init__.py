"""Every visible word of the page, in English and Chinese. What other doors say too lives in messages/."""

from collections.abc import Mapping
from dataclasses import dataclass

from zimage_studio.messages import Lang
from zimage_studio.ui.texts.compress_en import COMPRESS_EN
from zimage_studio.ui.texts.compress_judge_en import COMPRESS_JUDGE_EN
from zimage_studio.ui.texts.compress_judge_zh import COMPRESS_JUDGE_ZH
from zimage_studio.ui.texts.compress_zh import COMPRESS_ZH
from zimage_studio.ui.texts.en import EN
from zimage_studio.ui.texts.memory_en import MEMORY_EN
from zimage_studio.ui.texts.memory_zh import MEMORY_ZH
from zimage_studio.ui.texts.zh import ZH

CATALOGUES: dict[Lang, Mapping[str, str]] = {
    "en": {**EN, **MEMORY_EN, **COMPRESS_EN, **COMPRESS_JUDGE_EN},
    "zh": {**ZH, **MEMORY_ZH, **COMPRESS_ZH, **COMPRESS_JUDGE_ZH},
}


@dataclass(frozen=True, slots=True)
class Texts:
    """The words in one language: `t("seed_last", seed=7)`."""

    lang: Lang

    def __call__(self, key: str, **values: object) -> str:
        """The text `key` with `values` filled in, as plain text: whoever puts it into HTML escapes it."""
        return CATALOGUES[self.lang][key].format(**values)
