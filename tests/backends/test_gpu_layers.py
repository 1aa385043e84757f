"""
The kernels of a layer against arithmetic written out.

They run on a GPU, or on a CPU where Triton is installed and interprets them (`TRITON_INTERPRET=1`).
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import KERNEL_DTYPES, KERNELS_ON, needs_kernels

from langchain_pareto.backends import gpu_layers
from langchain_pareto.backends.step_plan import Call

pytestmark = needs_kernels
WITHIN = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SLOTS = 3000


def a_call(
    groups: int, rows: int, columns: int, heads: int, first: int, dtype: torch.dtype
) -> Call:
    """Rows in order from `first` on, each of which sees half of the columns in use; the last third is padding."""
    seen = torch.rand(groups, rows, columns) < 0.5
    seen[:, :, 2 * columns // 3 :] = False
    seen[:, :, 0] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).to(dtype)
    mask = mask[:, :, None].expand(-1, -1, heads, -1).reshape(groups, 1, rows * heads, columns)
    return Call(
        rows=torch.arange(first, first + groups * rows).view(groups, rows).to(KERNELS_ON),
        columns=torch.randint(0, SLOTS, (groups, columns)).to(KERNELS_ON),
        mask=mask.contiguous().to(KERNELS_ON),
        row_positions=torch.randint(columns, (groups, rows)).to(KERNELS_ON),
        column_positions=torch.arange(columns).expand(groups, -1).contiguous().to(KERNELS_ON),
        heads=heads,
        whole=False,
    )


def expected(q, keys, values, calls, scale, window):
    """Call by call: softmax(q k' + mask) v in float64, the rows of all calls laid end to end."""
    out = []
    per_kv = q.shape[1] // len(keys)
    for call in calls:
        groups, rows = call.rows.shape
        k, v = (
            x[:, call.columns].double() for x in (keys, values)
        )  # (kv heads, groups, columns, width)
        k, v = (x.repeat_interleave(per_kv, 0).transpose(0, 1) for x in (k, v))
        mine = q[call.rows].double().transpose(1, 2)  # (groups, heads, rows, width)
        scores = mine @ k.transpose(-1, -2) * scale
        mask = call.mask.view(groups, rows, call.heads, -1)[:, :, 0].double()
        if window is not None:
            far = call.row_positions[:, :, None] - call.column_positions[:, None] >= window
            mask = mask.masked_fill(far, float("-inf"))
        weights = (scores + mask[:, None]).softmax(-1)
        out.append((weights @ v).transpose(1, 2).reshape(groups * rows, q.shape[1], -1))
    return torch.cat(out)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width", "shapes", "window"),
    [
        (4, 4, 64, 64, [(1, 1, 1536)], None),  # one branch, many splits
        (8, 2, 32, 32, [(1, 3, 256)], None),
        (8, 2, 16, 32, [(2, 2, 384), (1, 5, 256)], None),
        (32, 2, 16, 16, [(1, 8, 256)], None),  # several tiles of rows
        (4, 2, 16, 16, [(3, 4, 256)], 90),
        (
            4,
            4,
            128,
            128,
            [(70, 1, 256)],
            None,
        ),  # more groups than the device has room for: no split
    ],
)
def test_attention_over_the_pool(heads, kv_heads, width, value_width, shapes, window, dtype):
    """In any order of rows, over any columns, whoever sees them."""
    torch.manual_seed(len(shapes) + heads)
    calls, total = [], 0
    for groups, rows, columns in shapes:
        calls.append(a_call(groups, rows, columns, heads // kv_heads, total, dtype))
        if window is not None:  # every row sees something
            calls[-1].row_positions.clamp_(max=window - 1)
            calls[-1].row_positions[:, 1:] += 20
        total += groups * rows
    whole = torch.randn(total, heads + kv_heads, width).to(KERNELS_ON, dtype)
    keys = torch.randn(kv_heads, SLOTS, width).to(KERNELS_ON, dtype)
    values = torch.randn(kv_heads, SLOTS, value_width).to(KERNELS_ON, dtype)
    q = whole[:, :heads]  # as it comes out of a projection: its rows are apart
    if not all(gpu_layers.fits(x.shape[2], x.itemsize) for x in (q, keys, values)):
        assert dtype == torch.float32
        assert width == 256
        return
    want = expected(q, keys, values, calls, 0.3, window)
    for places in (None, torch.randperm(total).to(KERNELS_ON)):
        for query in (q, q.transpose(0, 1).contiguous().transpose(0, 1)):  # heads apart, too
            got = gpu_layers.attend(
                query, keys, values, calls, places=places, scale=0.3, window=window
            ).double()
            assert got.shape == (total, heads, value_width)
            right = want if places is None else want[places]
            assert torch.allclose(got, right, atol=WITHIN[dtype], rtol=WITHIN[dtype])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_keeping(normed, dtype):
    """Queries and keys are turned in place, keys and values written where they belong and nowhere else."""
    torch.manual_seed(1)
    heads, kv_heads, width, rows = 4, 2, 32, 5
    qkv = torch.randn(rows, heads + 2 * kv_heads, width).to(KERNELS_ON, dtype)
    rotations = torch.randn(50, 2, width).to(KERNELS_ON, dtype)
    at, write = (
        torch.randint(0, 50, (rows,)).to(KERNELS_ON),
        torch.randperm(90)[:rows].to(KERNELS_ON),
    )
    norm = (torch.randn(heads + kv_heads, width).to(KERNELS_ON, dtype), 1e-5) if normed else None
    keys, values = torch.full((2, kv_heads, 90, width), 7.0, device=KERNELS_ON, dtype=dtype)
    got = qkv.clone()
    gpu_layers.rotate_and_keep(got, rotations, at, write, keys, values, norm)
    x = qkv[:, : heads + kv_heads].double()
    if norm is not None:
        x = F.rms_norm(x, (width,), None, norm[1]) * norm[0].double()
    cos, sin = rotations[at].double().unsqueeze(2).unbind(1)
    want = x * cos + x.roll(width // 2, -1) * sin
    turned = got[:, : heads + kv_heads]
    assert torch.allclose(turned.double(), want, atol=WITHIN[dtype], rtol=WITHIN[dtype])
    assert torch.equal(keys[:, write].transpose(0, 1), got[:, heads : heads + kv_heads])
    assert torch.equal(values[:, write].transpose(0, 1), qkv[:, heads + kv_heads :])
    others = [slot for slot in range(90) if slot not in write.tolist()]
    assert bool((keys[:, others] == 7).all())
    assert bool((values[:, others] == 7).all())


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("n", [96, 1500])
def test_gates(n, dtype):
    """SiLU(gate) * up, for any width."""
    x = torch.randn(3, 2 * n, generator=torch.Generator().manual_seed(2)).to(KERNELS_ON, dtype)
    gate, up = x.double().chunk(2, -1)
    got = gpu_layers.gate(x).double()
    assert torch.allclose(got, F.silu(gate) * up, atol=WITHIN[dtype], rtol=WITHIN[dtype])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("n", [16, 700, 4096])
def test_norms(n, dtype):
    """x / sqrt(mean(x^2) + epsilon) * weight, for any width."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (
        torch.randn(*shape, generator=generator).to(KERNELS_ON, dtype) for shape in ((5, n), (n,))
    )
    got = gpu_layers.rms_norm(x, weight, 1e-5).double()
    want = F.rms_norm(x.double(), (n,), weight.double(), 1e-5)
    assert torch.allclose(got, want, atol=WITHIN[dtype], rtol=WITHIN[dtype])
