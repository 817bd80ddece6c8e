"""What the two alignment losses cost, forward and backward, against plain torch and against a training step.

    python benchmarks/losses.py
    python benchmarks/losses.py --device cuda

L_AAL aligns 27 sets of 1-D features (Market's attributes with age as one column), L_MDAL one set of 2048-D ones: 32 +
32 samples, three kernels, one thread, float32. The peers compute the same numbers, which is checked first, and
autograd differentiates them. The plain loop goes over attributes, kernels and pairs of domains as eq. 3 to 6 are
written. Plain batched torch takes all attributes at once, shares distances among kernels and gets them from a product
of matrices: once for each of eq. 4's three means, or one of the joint batch, cut in three. The faster of the two here
and now has the bar. `MMDLoss` of pytorch-adapt, which gives the unbiased estimate attribute by attribute, stands beside
them; it is installed into a temporary folder, and without network it is left out and said so. The bars are those of one
core of a CPU: a GPU's lines of these have none.

Operations are those that torch dispatches in forward and backward of one term and that compute something: no views.
The share is that of both terms in a bare step of the whole network: two forwards of 32 images, backward, SGD.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile

import lines
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mmfa.config import profile
from mmfa.hardware import Hardware
from mmfa.mmd import kernel_report, squared_mmd
from mmfa.model import build
from mmfa.optim import build_sgd

BATCH, ALPHAS = 32, (1.0, 5.0, 10.0)
TERMS = {"L_AAL, 27 x 1-D": (27, 1), "L_MDAL, 2048-D": (1, 2048)}
LOOP, BATCHED, OPERATIONS = 20.0, 2.5, 45
SHARES = {"resnet50": ("paper", 0.001), "small": ("embedded", 0.03)}
"""Profile by backbone, and what both terms may take of its step."""
PEER = ("pytorch-adapt==0.0.83", "pytorch-metric-learning==2.9.0", "torchmetrics", "lightning-utilities")


def ours(source_NMD, target_PMD):
    """Return the loss as the product computes it."""
    return squared_mmd(source_NMD, target_PMD, bandwidths=ALPHAS, scale="dim").mean()


def kernel(x_ND, y_PD, alpha):
    """Return the mean of one kernel of eq. 5 over all pairs, as it is written."""
    d2_NP = ((x_ND[:, None] - y_PD[None]) ** 2).sum(dim=-1) / x_ND.shape[1]
    return torch.exp(-d2_NP / (2 * alpha)).mean()


def loop(source_NMD, target_PMD):
    """Return the loss attribute by attribute and kernel by kernel, as eq. 3 to 6 are written."""
    total = 0.0
    for source_ND, target_PD in zip(source_NMD.unbind(1), target_PMD.unbind(1), strict=True):
        for alpha in ALPHAS:
            within = kernel(source_ND, source_ND, alpha) + kernel(target_PD, target_PD, alpha)
            total = total + within - 2 * kernel(source_ND, target_PD, alpha)
    return total / (source_NMD.shape[1] * len(ALPHAS))


def kernels(x_MND, y_MPD):
    """Return the mean of the kernels over the bandwidths, for all pairs of all attributes; distances by a product."""
    lengths = (x_MND * x_MND).sum(dim=-1)[:, :, None] + (y_MPD * y_MPD).sum(dim=-1)[:, None]
    d2_MNP = (lengths - 2 * x_MND @ y_MPD.transpose(1, 2)).clamp(min=0) / x_MND.shape[2]
    return torch.stack([torch.exp(-d2_MNP / (2 * alpha)) for alpha in ALPHAS]).mean(dim=0)


def batched(source_NMD, target_PMD):
    """Return the loss of all attributes at once: the three means of eq. 4."""
    source_MND, target_MPD = source_NMD.transpose(0, 1), target_PMD.transpose(0, 1)
    within = kernels(source_MND, source_MND).mean() + kernels(target_MPD, target_MPD).mean()
    return within - 2 * kernels(source_MND, target_MPD).mean()


def joint(source_NMD, target_PMD):
    """Return the same by one matrix of the joint batch, cut in three afterwards."""
    num, joint_MJD = len(source_NMD), torch.cat([source_NMD, target_PMD]).transpose(0, 1)
    kernel_MJJ = kernels(joint_MJD, joint_MJD)
    within = kernel_MJJ[:, :num, :num].mean() + kernel_MJJ[:, num:, num:].mean()
    return within - 2 * kernel_MJJ[:, :num, num:].mean()


def adapt(folder):
    """Return pytorch-adapt's MMDLoss as a loss of ours, or None and why there is none."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *PEER]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        sys.path.append(folder)
        layers = importlib.import_module("pytorch_adapt.layers.mmd_loss")
    except (subprocess.SubprocessError, OSError, ImportError) as error:
        return None, str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]

    def theirs(source_NMD, target_PMD):
        divisor = source_NMD.shape[2]  # their kernel is exp(-scale d²)
        sets = zip(source_NMD.unbind(1), target_PMD.unbind(1), strict=True)
        scales = torch.tensor([0.5 / (alpha * divisor) for alpha in ALPHAS], device=source_NMD.device)
        loss = layers.MMDLoss(scales, mmd_type="quadratic", bandwidth=1.0)
        return sum(loss(source_ND, target_PD) for source_ND, target_PD in sets) / source_NMD.shape[1]

    return theirs, ""


def step_of(loss, shape, device):
    """Return a call of forward and backward on fixed features, and what it computes: the loss and its gradient."""
    num_sets, num_dimensions = shape
    generator = torch.Generator().manual_seed(0)
    source, target = (
        (torch.randn(BATCH, num_sets, num_dimensions, generator=generator) + shift).to(device).requires_grad_()
        for shift in (0.0, 0.3)
    )

    def step():
        source.grad = target.grad = None
        value = loss(source, target)
        value.backward()
        return value.detach(), source.grad

    step.features = source, target
    return step


NOTHING = {"aten::detach", "aten::_unsafe_view", "aten::promote_types"}
"""They return no view, and compute nothing either."""


class Operations(TorchDispatchMode):
    """Counts what torch dispatches; what computes nothing apart."""

    def __init__(self):
        super().__init__()
        self.computing, self.views = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if aliases or func._schema.name in NOTHING:
            self.views += 1
        else:
            self.computing += 1
        return func(*args, **(kwargs or {}))


def operations(step, name):
    """Return the line of how many operations a term is."""
    with Operations() as counted:
        step()
    return lines.figure(
        f"operations of {name}, forward and backward, against the limit", ours=counted.computing, peer=OPERATIONS,
        ratio=counted.computing / OPERATIONS, at_most=1.0, unit="operations", n=1, views=counted.views,
    )  # fmt: skip


def bare_step(name, device):
    """Return a bare step of the whole network of a profile, and the shapes of its two terms' features."""
    config = profile(name).with_overrides({"model.weights": "none"})
    hardware = Hardware.choose(device, config.run)
    model = build(config, num_ids=751, num_attributes=30, weights=None)
    model = model.to(memory_format=hardware.memory_format).to(hardware.device).train()
    optimiser = build_sgd(model, config.optim)
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, 3, config.data.image_height, config.data.image_width)
    images = [hardware.place(torch.randn(shape, generator=generator)) for _ in range(2)]
    labels_B = torch.randint(0, 751, (BATCH,), generator=generator).to(hardware.device)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with hardware.autocast():
            source, target = (model(images_BCHW) for images_BCHW in images)
        loss = functional.cross_entropy(source.identity_BK.float(), labels_B)
        (loss + target.pooled_BD.float().mean()).backward()
        optimiser.step()

    return step, [(30, 1), (1, model.num_features)]


def share(backbone, device, n):
    """Return the line of what both terms take of a step."""
    name, bar = SHARES[backbone]
    step, shapes = bare_step(name, device)
    terms = [step_of(ours, shape, device) for shape in shapes]
    found = lines.pairs(lambda: [term() for _ in range(10) for term in terms], step, n=n)
    found = lines.Pairs([seconds / 10 for seconds in found.ours], found.peer)
    scaled = lines.Pairs([1000 * seconds for seconds in found.ours], [1000 * seconds for seconds in found.peer])
    bar = bar if torch.device(device).type == "cpu" else None
    return lines.line(
        f"both alignment terms, against a bare step of {backbone}", scaled, at_most=bar, unit="ms", profile=name
    )


def check(mine, theirs, *, unbiased):
    """Refuse a peer that computes something else: the loss and its gradient, or the unbiased estimate of eq. 4."""
    if not unbiased:
        torch.testing.assert_close(mine(), theirs(), rtol=1e-3, atol=1e-6)
        return
    report = kernel_report(*(one.detach() for one in theirs.features), bandwidths=ALPHAS, scale="dim")
    assert abs(report.unbiased - theirs()[0].item()) < 1e-4, (report.unbiased, theirs()[0].item())


def against(name, shape, peer, peer_name, *, device, n, repeats, unbiased=False, at_least=None, **more):
    """Return the line of one term against one peer, whose numbers must be the same."""
    found = pairs_of(shape, peer, device=device, n=n, repeats=repeats, unbiased=unbiased)
    return lines.line(f"{name}, forward and backward, against {peer_name}", found, unit="ms", at_least=at_least, **more)


def pairs_of(shape, peer, *, device, n, repeats, unbiased=False):
    """Return the milliseconds of a term and of a peer whose numbers must be the same, in turns."""
    mine, theirs = step_of(ours, shape, device), step_of(peer, shape, device)
    check(mine, theirs, unbiased=unbiased)
    found = lines.pairs(
        lambda: [mine() for _ in range(repeats)], lambda: [theirs() for _ in range(repeats)], n=n, warmups=2
    )
    return lines.Pairs(*([1000 * seconds / repeats for seconds in side] for side in found))


def batched_torch(name, shape, *, device, at_least, n, repeats):
    """Return the lines of both formulations of plain batched torch; the one that proves faster has the bar."""
    ways = {"three matrices": batched, "one matrix of the joint batch": joint}
    measured = {way: pairs_of(shape, peer, device=device, n=n, repeats=repeats) for way, peer in ways.items()}
    fast, slow = sorted(ways, key=lambda way: statistics.median(measured[way].peer))
    of = f"{name}, forward and backward, against"
    return [
        lines.line(f"{of} plain batched torch", measured[fast], unit="ms", at_least=at_least, formulation=fast),
        lines.line(f"{of} its slower formulation", measured[slow], unit="ms", formulation=slow),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=20, help="steps in a round (default: 20)")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"device": options.device, "n": options.rounds, "repeats": options.repeats}
    on_cpu = torch.device(options.device).type == "cpu"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        theirs, reason = adapt(folder)
        for name, shape in TERMS.items():
            found.append(against(name, shape, loop, "the plain loop", at_least=LOOP if on_cpu else None, **given))
            found += batched_torch(name, shape, at_least=BATCHED if on_cpu else None, **given)
            if theirs is not None:
                found.append(against(name, shape, theirs, "pytorch-adapt's MMDLoss", unbiased=True, **given))
            found.append(operations(step_of(ours, shape, options.device), name))
    if theirs is None:
        sys.stderr.write(f"pytorch-adapt's MMDLoss is not compared with: {reason}\n")
    for backbone, rounds in (("resnet50", max(3, options.rounds // 2)), ("small", options.rounds)):
        found.append(share(backbone, options.device, rounds))
    lines.emit(found, f"losses-{torch.device(options.device).type}", record=options.record)


if __name__ == "__main__":
    main()
