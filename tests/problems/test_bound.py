"""A loss that larger outputs lower without end is refused; one with a lower bound never is."""

import pytest
import torch
from small import blobs_problem, line_problem
from torch import nn
from torch.nn import functional as F

import etascope as es
from etascope.problems.checks import check_parts

x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
classes, value = x[:, :3].argmax(1), x[:, :1] * 2 + 1
MODELS = {
    "linear": lambda n: nn.Linear(8, n),
    "mlp": lambda n: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, n)),
    "deep": lambda n: nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, n)
    ),
    "normed": lambda n: nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, n)
    ),
}


def problem(outputs, loss, model, **changes):
    split = [(t[:64], t[64:]) for t in (x, classes, value)]
    settings = {
        "train": tuple(first for first, _ in split),
        "valid": tuple(rest for _, rest in split),
        "batch_size": 16,
        **changes,
    }
    return line_problem(
        model=lambda: MODELS[model](outputs), loss=lambda m, b: loss(m(b[0]), b), **settings
    )


def one_hot(b):
    return F.one_hot(b[1], 3).float()


ENDLESS = {
    "raw nll_loss": (3, lambda o, b: F.nll_loss(o, b[1])),
    "tiny": (3, lambda o, b: 1e-4 * F.nll_loss(o, b[1])),
    "-cross_entropy": (3, lambda o, b: -F.cross_entropy(o, b[1])),
    "-mse": (1, lambda o, b: -F.mse_loss(o, b[2])),
    "-l1": (1, lambda o, b: -F.l1_loss(o, b[2])),
    "-(o * onehot)": (3, lambda o, b: -(o * one_hot(b)).sum()),
    "kl of raw outputs": (3, lambda o, b: F.kl_div(o, one_hot(b) * 0.9 + 1 / 30)),
    "-bce": (1, lambda o, b: -F.binary_cross_entropy_with_logits(o, (b[2] > 0).float())),
    "-gaussian nll": (2, lambda o, b: -F.gaussian_nll_loss(o[:, :1], b[2], o[:, 1:].exp())),
    "no hinge": (1, lambda o, b: -(o * b[2].sign()).mean()),
    "advantage": (3, lambda o, b: -(F.log_softmax(o, 1)[:, 0] * (b[2][:, 0] - 1)).mean()),
}


@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_loss_without_a_lower_bound_is_refused(kind, model):
    with pytest.raises(es.UsageError, match=r"no lower bound.*flipped sign.*log_softmax.*chance="):
        check_parts(problem(*ENDLESS[kind], model))
    check_parts(problem(*ENDLESS[kind], model, chance=1.0))


def gaussian(o, b):
    return (0.5 * (o[:, 1:] + (o[:, :1] - b[2]).square() * torch.exp(-o[:, 1:]))).mean()


def focal(o, b):
    share = F.softmax(o, 1).gather(1, b[1][:, None])[:, 0]
    return ((1 - share).square() * F.cross_entropy(o, b[1], reduction="none")).mean()


def info_nce(o, b):
    a, c = F.normalize(o), F.normalize(o.roll(1, 0))
    return F.cross_entropy(a @ c.T / 0.1, torch.arange(len(o)))


def ctc(o, b):
    shares = F.log_softmax(o.view(-1, 4, 5).transpose(0, 1), -1)
    lengths = torch.ones(len(o), dtype=torch.int64)
    return F.ctc_loss(shares, b[1][:, None] + 1, 4 * lengths, lengths)


def elbo(o, b):
    mean, spread = o[:, :8], o[:, 8:]
    z = mean + torch.randn_like(mean) * (spread / 2).exp()
    kl = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1).mean()
    return (z - b[0]).square().sum(1).mean() + kl


BOUNDED = {
    "mse": (1, lambda o, b: F.mse_loss(o, b[2])),
    "mse less a thousand": (1, lambda o, b: F.mse_loss(o, b[2]) - 1000),
    "l1": (1, lambda o, b: F.l1_loss(o, b[2])),
    "huber": (1, lambda o, b: F.huber_loss(o, b[2])),
    "cross_entropy": (3, lambda o, b: F.cross_entropy(o, b[1])),
    "smoothed": (3, lambda o, b: F.cross_entropy(o, b[1], label_smoothing=0.1)),
    "weighted": (3, lambda o, b: F.cross_entropy(o, b[1], torch.tensor([1.0, 2, 3]))),
    "ignoring": (3, lambda o, b: F.cross_entropy(o, b[1], ignore_index=0)),
    "bce": (1, lambda o, b: F.binary_cross_entropy_with_logits(o, (b[2] > 0).float())),
    "hinge": (1, lambda o, b: (1 - o * b[2].sign()).relu().mean()),
    "focal": (3, focal),
    "gaussian": (2, gaussian),
    "torch's gaussian": (2, lambda o, b: F.gaussian_nll_loss(o[:, :1], b[2], o[:, 1:].exp())),
    "poisson": (1, lambda o, b: F.poisson_nll_loss(o, (b[2].abs() * 100).round())),
    "ctc": (20, ctc),
    "cosine": (3, lambda o, b: F.cosine_embedding_loss(o, o.roll(1, 0), b[2][:, 0].sign())),
    "triplet": (3, lambda o, b: F.triplet_margin_loss(o, o.roll(1, 0), o.roll(2, 0))),
    "info nce": (3, info_nce),
    "elbo": (16, elbo),
    "perplexity": (3, lambda o, b: F.cross_entropy(o, b[1]).exp()),
    "energy": (1, lambda o, b: (o * b[2].sign()).mean() + 0.1 * o.square().mean()),
    "several": (3, lambda o, b: F.cross_entropy(o, b[1]) + F.mse_loss(o[:, :1], b[2])),
    "-cosine": (3, lambda o, b: -F.cosine_similarity(o, one_hot(b)).mean()),
    "-dice": (3, lambda o, b: -(F.softmax(o, 1) * one_hot(b)).mean()),
    "shares": (3, lambda o, b: F.nll_loss(F.softmax(o, 1), b[1])),
    "flow": (2, lambda o, b: (((b[2] - o[:, :1]) * o[:, 1:].exp()).square() - o[:, 1:]).mean()),
    "quantile": (1, lambda o, b: torch.maximum(0.9 * (b[2] - o), 0.1 * (o - b[2])).mean()),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", BOUNDED)
def test_a_loss_with_a_lower_bound_passes(kind, model):
    check_parts(problem(*BOUNDED[kind], model))


class Own(nn.Module):
    """Returns its own loss: a dict with it, or one number an example."""

    def __init__(self, each):
        super().__init__()
        self.head, self.each = nn.Linear(8, 3), each

    def forward(self, inputs, labels):
        losses = F.cross_entropy(self.head(inputs), labels, reduction="none")
        return losses if self.each else {"loss": losses.mean()}


@pytest.mark.parametrize("each", [False, True])
def test_a_model_that_returns_its_loss_passes(each):
    def loss(m, b):
        return m(b[0], b[1]).mean() if each else m(b[0], b[1])["loss"]

    tensors = {"train": (x[:64], classes[:64]), "valid": (x[64:], classes[64:])}
    check_parts(blobs_problem(model=lambda: Own(each), loss=loss, metric=None, **tensors))


def test_find_does_not_resolve_on_the_largest_rate(tmp_path):
    raw = blobs_problem(loss=lambda m, b: F.nll_loss(m(b[0]), b[1]))
    with pytest.raises(es.UsageError, match="no lower bound"):
        es.find(raw, steps=20, out=tmp_path)
