"""
The torch backend on a GPU: the same facts as on the CPU, where a device could make them false.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig

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
