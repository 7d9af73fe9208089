"""What is exported for PEFT and transformers computes there what it computes here, in every family.

transformers makes a tiny random model, mlx-lm loads it with a random adapter, and both sides score the same
token ids: transformers with PEFT the base and the exported adapter, transformers alone the merged model.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_folders import make_adapter, make_tokenizer

from localdpo.core.errors import LocalDPOError
from localdpo.interop.folder import SAME_NAMES
from localdpo.interop.importing import ImportRequest, import_path
from localdpo.interop.targets import TARGETS, Settings
from localdpo.interop.trained import Trained
from localdpo.model import lora
from localdpo.model.load import load_base, load_tokenizer
from localdpo.recipe.load import load_recipe
from localdpo.records.rundir import RunDir

MISSING = [name for name in ("torch", "peft") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not installed: pip install -e '.[parity]' for the optional extra",
    ),
    # What torch and PEFT warn about on import and while loading is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
# What a family needs besides.
EXTRA: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 64},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 64, "num_hidden_layers": 6},
    "granite": {
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
}
OLDER: dict[str, dict[str, Any]] = {
    "gemma3_text": {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
}
IDS = np.random.default_rng(1).integers(3, 300, (2, 24))


def make_family(folder: Path, family: str, *, tied: bool) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        family,
        **SHAPE | EXTRA.get(family, {}),
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
            else:
                # Norms and biases away from what they begin with, so that one read wrongly would show.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    # mlx-lm reads the older names of transformers' options, and has other defaults.
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"rope_theta": 10000.0} | OLDER.get(family, {}))
    )
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder: Path, base: Path, **shape: Any) -> Trained:
    """A random adapter of the model, as an export takes it."""
    config = make_adapter(folder / "adapter", base, **shape)
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"model: {base}\ndata: {{train: demo:preferences/train}}\n")
    return Trained(RunDir(folder), load_recipe(recipe), folder / "adapter", config, base)


def exported(run: Trained, target: str, folder: Path, dtype: str | None = None) -> Path:
    folder.mkdir()
    TARGETS[target].prepare(run, Settings(dtype=dtype)).write(folder)
    return folder


def mlx_logps(base: Path, adapter: Path | None = None) -> np.ndarray:
    """Log-probability of every token of IDS but the first."""
    model = load_base(str(base)).model
    if adapter is not None:
        lora.attach(model, lora.read_config(adapter), seed=0)
        lora.load_weights(model, adapter)
    logits = model(mx.array(IDS)).astype(mx.float32)
    every = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return np.take_along_axis(np.array(every)[:, :-1], IDS[:, 1:, None], axis=-1)[..., 0]


def torch_logps(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = model.eval()(torch.tensor(IDS)).logits.float()
    every = torch.log_softmax(logits, dim=-1).numpy()
    return np.take_along_axis(every[:, :-1], IDS[:, 1:, None], axis=-1)[..., 0]


def loaded(folder: Path, peft: Path | None = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if peft is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, peft)


@pytest.mark.parametrize("family", sorted(SAME_NAMES))
def test_peft_and_transformers_compute_the_same(family: str, tmp_path: Path) -> None:
    base = make_family(tmp_path / "base", family, tied=family.startswith("gemma"))
    run = trained(tmp_path, base)
    here, plain = mlx_logps(base, run.adapter), mlx_logps(base)
    assert np.abs(here - plain).max() > 0.1
    assert torch_logps(loaded(base)) == pytest.approx(plain, abs=1e-3), "the base itself"
    peft = exported(run, "peft", tmp_path / "peft")
    assert torch_logps(loaded(base, peft)) == pytest.approx(here, abs=1e-3)
    hf = exported(run, "hf", tmp_path / "hf", "float32")
    assert torch_logps(loaded(hf)) == pytest.approx(here, abs=1e-3)
    half = torch_logps(loaded(exported(run, "hf", tmp_path / "half")))
    assert np.abs(half - here).mean() < 0.02 * np.abs(here - plain).mean()


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "dora"},
        {"layers": 1, "keys": ("self_attn.q_proj", "mlp.up_proj")},
        {"keys": ("self_attn.v_proj", "lm_head", "model.embed_tokens"), "rank": 3},
    ],
    ids=["dora", "last block", "embedding and head"],
)
def test_every_shape_of_an_adapter_computes_the_same(shape: dict[str, Any], tmp_path: Path) -> None:
    base = make_family(tmp_path / "base", "llama", tied=False)
    run = trained(tmp_path, base, **shape)
    here = mlx_logps(base, run.adapter)
    assert np.abs(here - mlx_logps(base)).max() > 0.01
    peft = exported(run, "peft", tmp_path / "peft")
    assert torch_logps(loaded(base, peft)) == pytest.approx(here, abs=1e-3)
    hf = exported(run, "hf", tmp_path / "hf", "float32")
    assert torch_logps(loaded(hf)) == pytest.approx(here, abs=1e-3)


def test_what_peft_saves_is_imported(tmp_path: Path) -> None:
    """An adapter that PEFT itself made and saved, DoRA with rank-stabilised scaling."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = make_family(tmp_path / "base", "llama", tied=False)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_dora=True,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(loaded(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    model.save_pretrained(tmp_path / "peft")
    request = ImportRequest(tmp_path / "peft", tmp_path / "adapter", model=str(base))
    report = import_path(request)
    assert report.record["lora_parameters"] == {
        "rank": 4,
        "scale": 3.0,
        "dropout": 0.0,
        "keys": ["mlp.down_proj", "self_attn.q_proj"],
    }
    assert mlx_logps(base, tmp_path / "adapter") == pytest.approx(torch_logps(model), abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_of_the_reference_implementation_is_imported(dtype: str, tmp_path: Path) -> None:
    """A dict with the weights under `state`; other files of PyTorch are refused, and no code in them runs."""
    import torch

    base = make_family(tmp_path / "base", "llama", tied=False)
    model = loaded(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    torch.save({"step_idx": 9, "state": state, "metrics": {}}, tmp_path / "policy.pt")
    with pytest.raises(LocalDPOError, match="name the base that was trained: --model"):
        import_path(ImportRequest(tmp_path / "policy.pt", tmp_path / "out"))
    report = import_path(ImportRequest(tmp_path / "policy.pt", tmp_path / "out", model=str(base)))
    assert report.record["types"] == {dtype: len(state)}
    assert mlx_logps(tmp_path / "out") == pytest.approx(torch_logps(model.float()), abs=1e-3)
    assert load_tokenizer(str(tmp_path / "out")).encode("good") == load_tokenizer(str(base)).encode("good")
    torch.save({"weights": state}, tmp_path / "other.pt")
    torch.save({"state": tmp_path}, tmp_path / "code.pt")  # a pickled object that is no tensor
    torch.save({"state": {"x": torch.zeros(3)}}, tmp_path / "few.pt")
    for name, words in (
        ("other", "expected a dict with the weights under 'state'"),
        ("code", "PyTorch cannot read it as weights"),
        ("few", "these weights are not of"),
    ):
        with pytest.raises(LocalDPOError, match=words):
            import_path(ImportRequest(tmp_path / f"{name}.pt", tmp_path / name, model=str(base)))
        assert not (tmp_path / name).exists()
