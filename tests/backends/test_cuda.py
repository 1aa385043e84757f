"""
The torch backend on a GPU: the same facts as on the CPU, where a device could make them false.
"""

import pytest
import torch
from conftest import walk
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)

from langchain_pareto import ChatPareto
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.decoders import Rounds
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.keys import root_key
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.torch_runner import TorchRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=8),
    "phi3": lambda: Phi3Config(**SHAPE, pad_token_id=0),  # heads of its queries lie apart
    "gpt_neox": lambda: GPTNeoXConfig(
        **{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
    ),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "gemma2": lambda: Gemma2Config(
        **SHAPE, head_dim=16, sliding_window=8, attn_logit_softcapping=2.0
    ),
    "gpt_oss": lambda: GptOssConfig(
        **SHAPE, head_dim=16, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
    ),
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
    return model.eval().to("cuda", dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_a_full_forward(name):
    """Prefill in chunks, forks and decode steps give the logits of one full forward."""
    model = tiny(name)
    tokens = torch.randint(0, 97, (1, 700), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        full = model(input_ids=tokens.cuda(), use_cache=False).logits[0]
    runner = TorchRunner(model, slots=4096)
    try:
        sequence = runner.open(tokens[0, :600].tolist())
        while sequence.pending > 1:
            n = min(sequence.pending - 1, 256)
            runner.step([Chunk(sequence, n, 0)])
        branches = [runner.fork(sequence) for _ in range(5)]
        for step in range(20):
            rows = runner.step([Chunk(b, 1, 1) for b in branches]).rows
            assert torch.allclose(rows, full[599 + step].expand_as(rows), atol=2e-3, rtol=1e-3)
            for branch in branches:
                runner.append(branch, [int(tokens[0, 600 + step])])
    finally:
        runner.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_captured_steps_give_what_they_gave(name, dtype):
    """Steps that are replayed, with plans that grow, change and come again, give the logits of steps launched kernel by kernel."""
    plain, captured = (TorchRunner(tiny(name, dtype), slots=4096) for _ in range(2))
    plain._graphs = None
    for salt in range(3):
        assert torch.equal(walk(plain, salt=salt), walk(captured, salt=salt))
    assert captured._graphs._graphs
    captured.trim()
    assert not captured._graphs._graphs
    assert torch.equal(walk(plain, salt=9), walk(captured, salt=9))
    plain.close()
    captured.close()


def test_kernels_give_what_transformers_attention_gives():
    """The same walk with and without the kernels of a GPU, within rounding."""
    for name in ("llama", "mistral", "qwen3"):
        ours, plain = (TorchRunner(tiny(name), slots=4096) for _ in range(2))
        assert ours._stage.on_gpu
        plain._stage.on_gpu = False
        plain._graphs = None
        a, b = walk(ours), walk(plain)
        assert torch.allclose(a, b, atol=2e-3, rtol=1e-3)
        ours.close()
        plain.close()


def test_a_text_outgrows_the_table_of_rotations():
    """Graphs that read the shorter table are not replayed beyond it."""
    model = tiny("llama")
    tokens = torch.randint(0, 97, (1, 2300), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        full = model(input_ids=tokens.cuda(), use_cache=False).logits[0]
    runner = TorchRunner(model, slots=4096)
    for start in (1000, 2030):
        sequence = runner.open(tokens[0, :start].tolist())
        for at in range(start - 1, start + 60):
            rows = runner.step([Chunk(sequence, sequence.pending, 1)]).rows
            assert torch.allclose(rows[0], full[at], atol=2e-3, rtol=1e-3)
            runner.append(sequence, [int(tokens[0, at + 1])])
        runner.free(sequence)
    assert len({key[-1] for key in runner._graphs._graphs}) > 1  # tables
    runner.close()


def test_captures_that_fail_cost_only_speed(caplog):
    """What waits for the device in a capture breaks it: the step has its result, and memory and random numbers are as before."""
    plain, failing = (TorchRunner(tiny("llama"), slots=4096) for _ in range(2))
    plain._graphs = None
    forward = failing._forward

    def waits(tokens, positions, keep):
        if torch.cuda.is_current_stream_capturing():
            tokens.sum().item()
        return forward(tokens, positions, keep)

    failing._forward = waits
    for salt in range(3):
        assert torch.equal(walk(plain, salt=salt), walk(failing, salt=salt))
    assert caplog.text.count("was not captured") == 3
    assert not failing._graphs._graphs
    torch.cuda.empty_cache()
    assert torch.randn(3, device="cuda").isfinite().all()
    failing.trim()
    plain.close()
    failing.close()


def test_after_a_capture_that_failed_others_succeed():
    """One that was broken among many that were not takes nothing from the next."""
    plain, captured = (TorchRunner(tiny("llama"), slots=4096) for _ in range(2))
    plain._graphs = None
    forward, breaks = captured._forward, iter([False, False, True])

    def waits(tokens, positions, keep):
        if torch.cuda.is_current_stream_capturing() and next(breaks, False):
            tokens.sum().item()
        return forward(tokens, positions, keep)

    captured._forward = waits
    for salt in range(4):
        assert torch.equal(walk(plain, salt=salt), walk(captured, salt=salt))
    assert captured._graphs._failures == 1
    assert len(captured._graphs._graphs) > 3
    plain.close()
    captured.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_are_those_of_the_cpu(dtype):
    """The same logits and keys give the same tokens on both devices."""
    logits = torch.randn(32, 50_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    for sampling in (
        Sampling(0.8),
        Sampling(0.0),
        Sampling(0.7, top_k=50, top_p=0.9),
        Sampling(1.0, min_p=0.05),
    ):
        rows = [Row(root_key(i, [1, 2, 3]), 7 + i, sampling) for i in range(32)]
        on_cpu = Sampler().draw(logits, rows).to_host().tokens
        on_gpu = Sampler().draw(logits.cuda(), rows).to_host().tokens
        assert on_cpu == on_gpu


def test_the_bundled_model_answers():
    """The face works on the device that it picks by itself, and leaves nothing live."""
    with_model = ChatPareto(seed=1, strategy="vote", max_tokens=64)
    message = with_model.invoke("Use 11 7 3 to make 74.", budget="2000 tokens")
    backend = with_model._backend()
    assert backend.spec.device.startswith("cuda")
    assert message.response_metadata["pareto"]["samples"] >= 3
    branch = backend.open("Use 1 2 to make 3.\n")
    task = backend.extend(branch, Sampling(0.0), Stop(8))
    assert len(task.future.result().tokens) <= 8
    branch.free()
    backend.engine.call(lambda: None).result()
    assert backend.runner.pool.live == 0
    with_model.close()


@pytest.mark.parametrize("schedule", ["batched", "first_come"])
def test_a_draft_runs_on_a_stream_of_its_own(schedule):
    """While the target's kernels run, so do the draft's; the text is that of plain decoding, greedy and sampled."""
    with load("nano", device="cuda") as target, load("nano-draft", device="cuda") as draft:
        for sampling in (Sampling(0.0), Sampling(1.0)):
            texts = []
            for backend in (target, DecodingBackend(target, Rounds(schedule=schedule), draft)):
                root = backend.open("Use 11 7 3 to make 74.\n", seed=3)
                tasks = [
                    backend.extend(branch, sampling, Stop(64, eos=False)) for branch in root.fork(4)
                ]
                texts.append([task.future.result().tokens for task in tasks])
            assert texts[0] == texts[1]
        assert target.runner._stream is None
        assert draft.runner._stream is not None
