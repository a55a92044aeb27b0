from __future__ import annotations

import json
import os
import pickle
import re
import struct

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from export.ties import tie_map, unique_parameters
from tests.export.nets import TiedEmbedding
from weightspace import checkpoint
from weightspace.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_metadata,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from weightspace.models import MODELS

READERS = {
    "load_checkpoint": lambda path: load_checkpoint(nn.Linear(4, 3), path),
    "read_tensors": read_tensors,
    "read_metadata": read_metadata,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def scrambled(module):
    """Give every parameter and buffer values of its own, so that nothing equals by its default."""
    with torch.no_grad():
        for tensor in module.state_dict(keep_vars=True).values():
            tensor.copy_(torch.randint(1, 1000, tensor.shape))
    return module


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=32, num_attention_heads=2, num_hidden_layers=1,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


# ---- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-fmnist")])
def test_every_parameter_and_buffer_comes_back_bit_for_bit(name, path):
    module, other = scrambled(MODELS[name].build()), MODELS[name].build()
    save_checkpoint(module, path)
    load_checkpoint(other, path)
    saved, loaded = module.state_dict(), other.state_dict()
    assert list(saved) == list(loaded)
    assert any("running_var" in key for key in saved)
    for key, tensor in saved.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor), key


@pytest.mark.parametrize("build", [TiedEmbedding, bert])
def test_shared_parameters_are_stored_once_and_come_back_shared(build, path):
    module, other = build(), build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    save_checkpoint(module, path)
    load_checkpoint(other, path)
    for key, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key
    assert tie_map(other) == tie_map(module)
    assert len(tie_map(other).ties) >= 1


def test_an_alias_and_a_transposed_view_still_follow_their_owner_after_loading(path):
    save_checkpoint(TiedEmbedding(), path)
    module = TiedEmbedding()
    load_checkpoint(module, path)
    assert module.output.weight is module.embedding.weight
    with torch.no_grad():
        module.block.weight[3, 5] = 42.0
    assert module.alias[5, 3] == 42.0


@pytest.mark.parametrize("build", [TiedEmbedding, bert, lambda: MODELS["vit-pe-fmnist"].build()])
def test_the_file_holds_each_shared_parameter_once(build, path):
    module = build()
    save_checkpoint(module, path)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    aliased = sum(tensor.bytes * len(tensor.aliases) for tensor in tie_map(module).ties)
    buffers = {
        buffer.data_ptr(): buffer.nbytes
        for key, buffer in module.named_buffers()
        if key in module.state_dict()
    }
    assert path.stat().st_size == 8 + header + 4 * unique_parameters(module) + sum(buffers.values())
    # were the ties lost the file would be larger than this by all of these bytes
    assert aliased > 0 or not isinstance(module, TiedEmbedding)


def test_the_texts_of_the_header_come_back_without_the_aliases(path):
    module = TiedEmbedding()
    save_checkpoint(module, path, {"model": "net", "note": "ü 1"})
    assert load_checkpoint(TiedEmbedding(), path) == {"model": "net", "note": "ü 1"}
    assert json.loads(read_metadata(path)["aliases"]) == {
        "output.weight": "embedding.weight",
        "alias": "block.weight>transpose",
    }


def test_a_tensor_that_is_stored_transposed_comes_back_as_it_was(path):
    module, other = nn.Linear(4, 3), nn.Linear(4, 3)
    module.weight = nn.Parameter(torch.randn(4, 3).t())
    save_checkpoint(module, path)
    load_checkpoint(other, path)
    assert torch.equal(other.weight, module.weight)


class TwoViews(nn.Module):
    """Two parameters that are views of the same sixteen numbers."""

    def __init__(self, first, second):
        super().__init__()
        base = torch.randn(4, 4)
        self.first, self.second = nn.Parameter(first(base)), nn.Parameter(second(base))


def whole(base):
    return base


def filters(base):
    return base.view(4, 4, 1, 1)


SAME_MEMORY = {
    "a filter and its transpose": (filters, lambda base: filters(base).transpose(0, 1)),
    "a matrix and the same numbers in a row": (whole, lambda base: base.view(16)),
    "a matrix and another shape": (whole, lambda base: base.view(2, 8)),
    "two names of a strided view": (lambda base: base[:, :2], lambda base: base[:, :2]),
    "two names of a transpose": (lambda base: base.t(), lambda base: base.t()),
}


@pytest.mark.parametrize("views", SAME_MEMORY.values(), ids=SAME_MEMORY)
def test_any_two_views_of_the_same_numbers_are_stored_once_and_stay_tied(path, views):
    module, other = TwoViews(*views), TwoViews(*views)
    save_checkpoint(module, path)
    stored, _ = read_tensors(path)
    assert list(stored) == ["first"]
    load_checkpoint(other, path)
    assert torch.equal(other.first, module.first)
    assert torch.equal(other.second, module.second)
    assert other.first.untyped_storage().data_ptr() == other.second.untyped_storage().data_ptr()


def test_views_of_the_same_numbers_in_another_order_are_another_tie(path):
    save_checkpoint(TwoViews(filters, filters), path)
    module = TwoViews(filters, lambda base: filters(base).transpose(0, 1))
    with refusal(path, " ties ['second'], the model ties ['second']; use its own model"):
        load_checkpoint(module, path)


APART = {
    "rows": (lambda base: base[:2], lambda base: base[2:]),
    "columns": (lambda base: base[:, :2], lambda base: base[:, 2:]),
    "every other column": (lambda base: base[:, ::2], lambda base: base[:, 1::2]),
}


@pytest.mark.parametrize("views", APART.values(), ids=APART)
def test_parts_of_one_storage_that_do_not_overlap_are_no_tie(path, views):
    module, other = TwoViews(*views), TwoViews(*views)
    save_checkpoint(module, path)
    stored, metadata = read_tensors(path)
    assert sorted(stored) == ["first", "second"]
    assert metadata["aliases"] == "{}"
    load_checkpoint(other, path)
    assert torch.equal(other.first, module.first)
    assert torch.equal(other.second, module.second)


OVERLAPPING = {
    "a matrix and its first rows": (whole, lambda base: base[:2]),
    "a matrix and its last rows": (whole, lambda base: base[2:]),
    "rows that overlap": (lambda base: base[:3], lambda base: base[1:]),
    "one element": (lambda base: base.view(16)[:8], lambda base: base.view(16)[7:]),
    "a matrix and its diagonal": (whole, torch.diagonal),
    "columns and a row": (lambda base: base[:, ::2], lambda base: base[1]),
    "the same bytes as other numbers": (whole, lambda base: base.view(torch.bfloat16)),
}


@pytest.mark.parametrize("views", OVERLAPPING.values(), ids=OVERLAPPING)
def test_parameters_that_overlap_in_part_are_not_saved(path, views):
    message = r"^parameters '(first|second)' and '(first|second)' overlap in memory in part; give"
    with pytest.raises(CheckpointError, match=message) as caught:
        save_checkpoint(TwoViews(*views), path)
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_an_expanded_parameter_is_not_saved(path):
    with pytest.raises(CheckpointError, match=r"^parameter 'second' is an expanded view"):
        save_checkpoint(TwoViews(whole, lambda base: base[0].clone().expand(3, 4)), path)
    assert not path.exists()


def test_a_missing_folder_is_said_before_saving(path):
    inside = path / "net.safetensors"
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(nn.Linear(4, 3), inside)
    assert str(caught.value) == (
        f"{inside} cannot be written: its folder is missing; create it first"
    )


def test_a_refusal_of_the_library_to_write_is_one_line(path, monkeypatch):
    def refuse(tensors, file, metadata):
        raise SafetensorError("no room")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(nn.Linear(4, 3), path)
    assert str(caught.value) == (
        f"{path} cannot be written (no room); see that there is room and permission"
    )
    assert list(path.parent.iterdir()) == []


def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    save_checkpoint(nn.Linear(4, 3), path)
    before = path.read_bytes()
    real, written = checkpoint.save_file, []

    def disk_full(tensors, file, metadata):
        real(tensors, file, metadata)
        written.append(file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(nn.Linear(4, 3), path)
    assert len(written) == 1
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_who_reads_the_old_file_while_a_new_one_is_saved_reads_it_whole(path):
    save_checkpoint(nn.Linear(4, 3), path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save_checkpoint(nn.Linear(4, 3), path)
        assert reader.read() == before
    assert path.read_bytes() != before


# ---- refusals ---------------------------------------------------------------------------------


@pytest.fixture(params=READERS)
def refused(request, path):
    """Read the file in each way; gives the message of the refusal."""

    def read():
        with pytest.raises(CheckpointError) as caught:
            READERS[request.param](path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message.removeprefix(str(path))

    return read


def test_a_missing_file_is_named(refused):
    assert refused() == " is not a file; give the path of a .safetensors checkpoint"


def test_a_folder_is_no_checkpoint(refused, path):
    path.mkdir()
    assert refused() == " is not a file; give the path of a .safetensors checkpoint"


def test_an_empty_file_is_refused(refused, path):
    path.touch()
    assert refused() == (
        " is not a whole safetensors file (its header does not fit in 0 bytes); copy it again"
    )


def test_a_file_cut_short_anywhere_is_refused(refused, path):
    save_checkpoint(nn.Linear(4, 3), path)
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    ends = (1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, len(whole) - 1)
    for end in ends:
        path.write_bytes(whole[:end])
        message = refused()
        assert message.startswith(" is not a whole safetensors file ("), end
        assert message.endswith("; copy it again"), end


def test_bytes_after_the_end_are_refused(refused, path):
    save_checkpoint(nn.Linear(4, 3), path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert " is not a whole safetensors file (" in refused()


@pytest.mark.parametrize("claim", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_more_than_the_file_is_refused(refused, path, claim):
    save_checkpoint(nn.Linear(4, 3), path)
    path.write_bytes(struct.pack("<Q", claim) + path.read_bytes()[8:])
    size = path.stat().st_size
    assert refused() == (
        f" is not a whole safetensors file (its header does not fit in {size} bytes); copy it again"
    )


def test_a_header_that_is_no_json_is_refused(refused, path):
    path.write_bytes(struct.pack("<Q", 32) + b"{" * 32)
    assert " is not a whole safetensors file (" in refused()


def test_text_is_refused(refused, path):
    path.write_text("<!DOCTYPE html><html>Not found</html>")
    assert " is not a whole safetensors file (" in refused()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def torch_zip(path, target):
    torch.save({"weight": Payload(target)}, path)


def torch_legacy(path, target):
    torch.save({"weight": Payload(target)}, path, _use_new_zipfile_serialization=False)


def raw_pickle(path, target):
    path.write_bytes(pickle.dumps(Payload(target)))


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, raw_pickle])
def test_a_pickle_is_refused_and_never_run(refused, path, tmp_path, write):
    write(path, tmp_path / "harmless")
    pickle.loads(pickle.dumps(Payload(tmp_path / "harmless")))
    assert (tmp_path / "harmless").exists()  # the payload works
    (tmp_path / "harmless").rmdir()
    kind = "zip archive that may hold a pickle" if write is torch_zip else "pickle"
    assert refused() == (
        f" is a {kind}, which may run code when it is read; load it where it is trusted "
        "with torch.load(..., weights_only=True) and save it as safetensors"
    )
    assert not (tmp_path / "harmless").exists()


def test_a_pickle_of_the_oldest_protocol_is_refused_and_never_run(refused, path, tmp_path):
    path.write_bytes(pickle.dumps(Payload(tmp_path / "harmless"), protocol=0))
    assert " is not a whole safetensors file (" in refused()
    assert not (tmp_path / "harmless").exists()


OTHER = "it belongs to another architecture"


def refusal(path, message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(f'{path}{message}')}$")


def test_other_shapes_are_refused_with_both_and_nothing_is_loaded(path):
    save_checkpoint(nn.Linear(4, 3), path)
    module = nn.Linear(5, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with refusal(path, f": 'weight' has shape (3, 4), the model needs (3, 5); {OTHER}"):
        load_checkpoint(module, path)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_integers_are_not_loaded_as_weights(path, dtype):
    write_tensors({"weight": torch.ones(3, 4, dtype=dtype), "bias": torch.ones(3)}, path, {})
    kind = str(dtype).removeprefix("torch.")
    with refusal(path, f": 'weight' holds {kind}, the model needs float32; save it in that type"):
        load_checkpoint(nn.Linear(4, 3), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded_in_the_models_own(path, dtype):
    write_tensors({"weight": torch.full((3, 4), 0.5).to(dtype), "bias": torch.ones(3)}, path, {})
    module = nn.Linear(4, 3)
    load_checkpoint(module, path)
    assert module.weight.dtype == torch.float32
    assert (module.weight == 0.5).all()


def test_missing_names_are_refused(path):
    save_checkpoint(nn.Linear(4, 3, bias=False), path)
    with refusal(path, " lacks 'bias' (1 missing, 0 unknown); it belongs to another architecture"):
        load_checkpoint(nn.Linear(4, 3), path)


def test_unknown_names_are_refused(path):
    save_checkpoint(nn.Linear(4, 3), path)
    with refusal(
        path,
        " holds the unknown 'bias' (0 missing, 1 unknown); it belongs to another architecture",
    ):
        load_checkpoint(nn.Linear(4, 3, bias=False), path)


def test_another_model_of_the_zoo_is_refused(path):
    save_checkpoint(MODELS["vit-fmnist"].build(), path)
    with pytest.raises(CheckpointError, match="belongs to another architecture"):
        load_checkpoint(MODELS["vit-pe-fmnist"].build(), path)


class TwoEmbeddings(nn.Module):
    def __init__(self, *, tied):
        super().__init__()
        self.embedding, self.output = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        if tied:
            self.output.weight = self.embedding.weight


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (True, " ties ['output.weight'], the model ties nothing; use its own model"),
        (False, " ties nothing, the model ties ['output.weight']; use its own model"),
    ],
)
def test_other_ties_are_refused(path, saved, message):
    save_checkpoint(TwoEmbeddings(tied=saved), path)
    with refusal(path, message):
        load_checkpoint(TwoEmbeddings(tied=not saved), path)


@pytest.mark.parametrize("length", [0x80, 0x180, 0x4B50])
def test_a_header_whose_length_looks_like_the_start_of_a_pickle_is_read(path, length):
    # the file begins with the header's length: 80 hex begins a pickle, 4B50 is "PK" of a zip
    text = "x" * (length - len('{"__metadata__":{"note":""},"bias":}'))
    bias = '{"dtype":"F32","shape":[3],"data_offsets":[0,12]}'
    text = text[len(bias) :]
    header = '{"__metadata__":{"note":"' + text + '"},"bias":' + bias + "}"
    assert len(header) == length
    path.write_bytes(struct.pack("<Q", length) + header.encode() + struct.pack("<3f", 1, 2, 3))
    tensors, metadata = read_tensors(path)
    assert tensors["bias"].tolist() == [1, 2, 3]
    assert metadata == {"note": text} == read_metadata(path)


class SquarePair(nn.Module):
    def __init__(self, *, transposed):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 4))
        self.second = nn.Parameter(self.first.data.t()) if transposed else self.first


@pytest.mark.parametrize("transposed", [True, False])
def test_a_tie_of_another_view_is_refused(path, transposed):
    save_checkpoint(SquarePair(transposed=transposed), path)
    with pytest.raises(CheckpointError, match=r"ties .*, the model ties .*; use its own model"):
        load_checkpoint(SquarePair(transposed=not transposed), path)


@pytest.mark.parametrize("aliases", ["not json", "null", "[1]", '"text"'])
def test_aliases_that_are_none_are_refused(path, aliases):
    write_tensors({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, path, {"aliases": aliases})
    with pytest.raises(CheckpointError):
        load_checkpoint(nn.Linear(4, 3), path)
