"""``tokenizer.json`` and its side files, against transformers; the Tokenizer class."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_samples import CORPUS, SAMPLES
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from octavo.errors import ConfigError, InvalidRequestError, ModelLoadError, UnsupportedModelError
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.frontend.tokenizer_parts import TokenizerParts
from octavo.models.hub import ModelFiles

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]


def byte_level_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def metaspace_backend() -> Backend:
    """As Llama 2's ``tokenizer.json``: a prefix from the normalizer, bytes for unknown characters, one stripped space."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *SPECIALS, *bytes_], limit_alphabet=50, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    content = json.loads(backend.to_str())  # bytes are vocabulary, not added tokens
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Backend.from_str(json.dumps(content))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    return backend


BACKENDS = {"byte_level": byte_level_backend, "metaspace": metaspace_backend}


@pytest.fixture(scope="module", params=BACKENDS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    BACKENDS[request.param]().save(str(path / "tokenizer.json"))
    write(path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    return path


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def load(directory: Path) -> Tokenizer:
    return load_tokenizer(ModelFiles("test", "hf", directory))


def oracle(directory: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


def small_directory(path: Path, **config: Any) -> Path:
    byte_level_backend().save(str(path / "tokenizer.json"))
    write(path, "tokenizer_config.json", config)
    return path


# ---- against transformers --------------------------------------------------------------------------------------------


def test_encoding_equals_transformers(directory: Path) -> None:
    ours, theirs = load(directory), oracle(directory)
    for text in SAMPLES:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text
    assert ours.encode_batch(SAMPLES) == [theirs.encode(text) for text in SAMPLES]


def test_decoding_equals_transformers(directory: Path) -> None:
    ours, theirs = load(directory), oracle(directory)
    for text in SAMPLES:
        token_ids = theirs.encode(text)
        for skip in (True, False):
            assert ours.decode(token_ids, skip_special_tokens=skip) == theirs.decode(token_ids, skip_special_tokens=skip), text


@given(token_ids=st.lists(st.integers(0, 599), max_size=20), skip=st.booleans())
def test_byte_level_decoding_equals_tokenizers_for_any_ids(token_ids: list[int], skip: bool) -> None:
    tokenizer = shared_byte_level()
    assert tokenizer.decode(token_ids, skip) == tokenizer.backend.decode(token_ids, skip_special_tokens=skip)


_SHARED: list[Tokenizer] = []


def shared_byte_level() -> Tokenizer:
    if not _SHARED:
        _SHARED.append(Tokenizer(TokenizerParts(byte_level_backend(), "test")))
    return _SHARED[0]


def test_ill_formed_byte_tokens_become_one_replacement_a_stretch_and_leave_their_neighbours_alone() -> None:
    tokenizer = Tokenizer(TokenizerParts(metaspace_backend(), "test"))
    spelled = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff\xe4\xbd" + "好".encode()]
    assert tokenizer.decode(spelled) == "é\ufffd\ufffd好"


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
        {
            "bos_token": {
                "__type": "AddedToken",
                "content": "<s>",
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            },
            "eos_token": "<|end|>",
            "additional_special_tokens": ["<|new|>", "<|user|>"],
        },
        {
            "eos_token": "</s>",
            "added_tokens_decoder": {
                "600": {"content": "<think>", "special": False, "normalized": False},
                "601": {"content": "<|tool|>", "special": True, "rstrip": True},
            },
        },
        {"bos_token": "<brand_new>", "unk_token": None},
    ],
)
def test_side_files_count_as_in_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    ours, theirs = load(small_directory(tmp_path, **config)), oracle(tmp_path)
    for text in [*SAMPLES, "a<|new|> b<think>c</think> <|tool|>  d <brand_new>x<|end|>y"]:
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True)
    assert ours.bos_token == theirs.bos_token
    assert ours.eos_token_id == theirs.eos_token_id


def test_special_tokens_map_counts_only_where_the_config_lists_no_added_tokens(tmp_path: Path) -> None:
    write(
        small_directory(tmp_path, bos_token="<s>"), "special_tokens_map.json", {"bos_token": {"content": "<|user|>"}, "eos_token": "</s>"}
    )
    assert (load(tmp_path).bos_token, load(tmp_path).eos_token) == ("<|user|>", "</s>")
    small_directory(tmp_path, bos_token="<s>", added_tokens_decoder={"1": {"content": "</s>", "special": True}})
    assert (load(tmp_path).bos_token, load(tmp_path).eos_token) == ("<s>", None)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a long enough text, or is it not")) == "a long enough text, or is it not"


# ---- chat templates --------------------------------------------------------------------------------------------------


def test_a_template_file_comes_before_the_configs(tmp_path: Path) -> None:
    small_directory(tmp_path, chat_template="from config")
    assert load(tmp_path).chat_template == "from config"
    write(tmp_path, "chat_template.json", {"chat_template": "from a processor"})
    assert load(tmp_path).chat_template == "from config"
    write(tmp_path, "chat_template.jinja", "from file")
    assert load(tmp_path).chat_template == "from file"


def test_named_templates_are_kept_by_name(tmp_path: Path) -> None:
    small_directory(tmp_path, chat_template=[{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}])
    assert load(tmp_path).chat_templates == {"default": "d", "tool_use": "t"}
    assert load(tmp_path).chat_template == "d"


def test_no_template_is_none(tmp_path: Path) -> None:
    assert load(small_directory(tmp_path)).chat_template is None


# ---- the class -------------------------------------------------------------------------------------------------------


def test_sizes_and_ids(directory: Path) -> None:
    tokenizer = load(directory)
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1
    assert tokenizer.backend.id_to_token(tokenizer.eos_token_id) == tokenizer.eos_token == "</s>"
    assert {tokenizer.backend.token_to_id(text) for text in SPECIALS} <= tokenizer.special_ids
    assert tokenizer.backend.token_to_id("a") not in tokenizer.special_ids


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "ok \ud83d"])
def test_a_lone_surrogate_is_the_clients_mistake(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        shared_byte_level().encode(text)
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        shared_byte_level().encode_batch(["fine", text])


def test_token_text_is_one_tokens_text(directory: Path) -> None:
    tokenizer = load(directory)
    emoji = tokenizer.encode("😀", add_special_tokens=False)
    parts = [token for token in emoji if tokenizer.token_bytes(token) not in (b" ", b"")]
    assert b"".join(map(tokenizer.token_bytes, parts)) == "😀".encode()
    assert all("\ufffd" in tokenizer.token_text(token) for token in parts if len(parts) > 1)
    assert tokenizer.token_text(tokenizer.eos_token_id or 0) == "</s>"


def test_ids_without_a_token_have_no_text_and_are_not_remembered() -> None:
    tokenizer = shared_byte_level()
    for token in (-1, tokenizer.vocab_size, 2**40):
        assert tokenizer.token_text(token) == ""
        assert tokenizer.decode([token, token]) == ""
        assert token not in dict(tokenizer.byte_table(False))


def test_neighbouring_added_tokens_are_joined_as_asked_where_tokens_are_joined_by_spaces() -> None:
    backend = Backend(models.WordLevel({"hello": 0, "world": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("<a>", special=True), AddedToken("<b>", special=True)])
    tokenizer = Tokenizer(TokenizerParts(backend, "test"))
    token_ids = tokenizer.encode("hello <a> <b> world")
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "hello <a> <b> world"
    assert tokenizer.decode(token_ids, skip_special_tokens=False, spaces_between_special_tokens=False) == "hello <a><b> world"
    assert tokenizer.decode(token_ids) == "hello world" == tokenizer.backend.decode(token_ids)


def test_threads_share_a_tokenizer() -> None:
    tokenizer = shared_byte_level()
    wanted = [tokenizer.encode(text) for text in SAMPLES]
    wrong: list[str] = []

    def work() -> None:
        for text, token_ids in list(zip(SAMPLES, wanted, strict=True)) * 10:
            if tokenizer.encode(text) != token_ids or tokenizer.decode(token_ids, False) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_loading_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    small_directory(tmp_path)
    script = (
        "import sys; from pathlib import Path; from octavo.models.hub import ModelFiles; "
        "from octavo.frontend.tokenizer import load_tokenizer; import octavo.frontend.stop_strings, octavo.frontend.chat_template; "
        "load_tokenizer(ModelFiles('x', 'hf', Path(sys.argv[1]))); "
        "assert not {'torch', 'transformers', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_directory_without_a_tokenizer_names_the_files_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json, tokenizer\.model"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}'])
def test_a_broken_tokenizer_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    write(tmp_path, "tokenizer.json", content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", ["nonsense", "[]", '{"added_tokens_decoder": {"x": 1}}', '{"added_tokens_decoder": {"x": {"content": "y"}}}']
)
def test_a_broken_config_is_refused_by_name(tmp_path: Path, content: str) -> None:
    write(small_directory(tmp_path), "tokenizer_config.json", content)
    with pytest.raises(ModelLoadError, match="tokenizer_config"):
        load(tmp_path)


def test_an_unknown_decoder_is_refused_by_name(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.decoder = decoders.CTC()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="CTC"):
        load(tmp_path)


# ---- another tokenizer than the model's ------------------------------------------------------------------------------


def test_the_override_is_a_directory_or_a_file(tmp_path: Path) -> None:
    files = ModelFiles("model", "hf", tmp_path / "nowhere")
    small_directory(tmp_path, eos_token="</s>")
    for override in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(files, str(override)).eos_token == "</s>"
    (tmp_path / "vocab.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(files, str(tmp_path / "vocab.txt"))


def test_an_override_that_is_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="neither a file or directory"):
        load_tokenizer(ModelFiles("model", "hf", tmp_path), "no/such/../repository")
