"""Small models of every family beside BERT, with tokenizers as transformers writes them.

For the tests beside transformers and for tools/make_family_goldens.py; needs transformers 4.57.6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import transformers
from random_models import vocabulary
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "Ada Lovelace wrote the first program in 1843, in London. It was never run! Sa mère, Anne, "
    "l'éleva près de Londres; 東京 is far. The ship sailed from Berlin to Paris, 3,000 km away "
)
LONGEST = 96  # tokens of a window


def make_tokenizer(folder: Path, name: str) -> Any:
    """A small tokenizer of a family's kind, saved in a folder as transformers saves it.

    Args:
        folder: an empty one.
        name: of the family as transformers' classes begin, such as 'DistilBert'.

    Returns:
        Transformers' tokenizer.
    """
    if name in ("DistilBert", "Electra"):
        made = word_pieces(folder, name)
    elif name == "Roberta":
        made = bytes_in_pairs(folder)
    else:
        made = unigrams(folder, name)
    made.save_pretrained(folder)
    return made


def word_pieces(folder: Path, name: str) -> Any:
    """BERT's tokenizer."""
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    kind = getattr(transformers, f"{name}TokenizerFast")
    return kind(str(folder / "vocab.txt"), model_max_length=LONGEST)


def bytes_in_pairs(folder: Path) -> Any:
    """RoBERTa's tokenizer, byte-level BPE."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([TEXT] * 3, vocab_size=380, special_tokens=special)
    files = bpe.save_model(str(folder))
    return transformers.RobertaTokenizerFast(*files, model_max_length=LONGEST)


def unigrams(folder: Path, name: str) -> Any:
    """A tokenizer as SentencePiece makes them: XLM-R's, CamemBERT's, ALBERT's."""
    albert = name == "Albert"
    cls, sep, mask = ("[CLS]", "[SEP]", "[MASK]") if albert else ("<s>", "</s>", "<mask>")
    splitter = tokenizers.Tokenizer(models.Unigram())
    splitter.pre_tokenizer = pre_tokenizers.Metaspace()
    if albert:
        splitter.normalizer = normalizers.Sequence(
            [
                normalizers.Replace("``", '"'),
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
                normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            ]
        )
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[cls, "<pad>", sep, "<unk>", mask], unk_token="<unk>"
    )
    splitter.train_from_iterator([TEXT] * 3, trainer)
    raw = folder / "raw.json"
    splitter.save(str(raw))
    kind = getattr(transformers, f"{name}TokenizerFast")
    made = kind(tokenizer_file=str(raw), model_max_length=LONGEST)
    raw.unlink()
    between = "$B:1 {1}:1" if albert else "{1} $B {1}"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {between.format(cls, sep)}",
        special_tokens=[(token, made.convert_tokens_to_ids(token)) for token in (cls, sep)],
    )
    return made
