"""A copy of a module stands for it in everything, or is refused with the attribute's name."""

import functools
import threading
import weakref

import pytest
import torch
from small import line_problem
from torch import nn

import etascope as es
from etascope.problems.copies import copied


def copy_of(model):
    return copied(model, {"": model})


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_stands_for(made, given, x):
    """Equal outputs and gradients, in memory of its own, also after the copy was trained."""
    for ours, theirs in zip(gradients(made, x), gradients(given, x), strict=True):
        assert torch.equal(ours, theirs)
    before = [p.detach().clone() for p in given.parameters()]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, b) for p, b in zip(given.parameters(), before, strict=True))
    assert not torch.equal(made(x), given(x))


class Keeps(nn.Module):
    """Keeps what its forward pass computed."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.last, self.all = None, []

    def forward(self, x):
        self.last = self.a(x)
        self.all = [self.last, {"last": self.last}]
        return self.last


class Scaled(nn.Module):
    """A bound method and a partial among its attributes, which a copy takes along."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.way, self.other = self.once, functools.partial(self.a)

    def once(self, x):
        return self.a(x)

    def forward(self, x):
        return self.way(x) + self.other(x)


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(3, 3))


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


MODELS = {
    "weight norm": old_weight_norm,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    "keeps outputs": Keeps,
    "bound methods": Scaled,
    "recurrent": lambda: nn.Sequential(nn.GRU(3, 3), First()),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU())),
    "traced": lambda: torch.jit.trace(nn.Linear(3, 3), torch.zeros(2, 3)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_copy_computes_as_the_module_does_and_shares_nothing(make):
    given = make().eval()  # a spectral norm changes its buffers in training
    x = torch.randn(4, 3)
    given(x).sum().backward()  # what is left over from work of the user's
    grads = [p.grad.clone() for p in given.parameters()]
    made = copy_of(given)
    assert all(torch.equal(p.grad, g) for p, g in zip(given.parameters(), grads, strict=True))
    assert isinstance(made, (type(given), torch.jit.ScriptModule))
    assert_stands_for(made, given, x)


def filled(parameter):
    parameter.grad.fill_(7.0)


def test_hooks_of_parameters_act_on_the_copy_too():
    given = nn.Linear(3, 3)
    given.weight.register_hook(lambda g: g * torch.tensor([1.0, 0.0, 2.0]))
    given.bias.register_post_accumulate_grad_hook(filled)
    made, x = copy_of(given), torch.randn(4, 3)
    assert_stands_for(made, given, x)
    assert gradients(made, x)[0][:, 1].abs().max() == 0
    assert gradients(made, x)[1].tolist() == [7.0] * 3


def test_parameters_that_share_their_memory_do_so_in_the_copy():
    given = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    given[1].weight.data = given[0].weight.data.T
    made = copy_of(given)
    with torch.no_grad():
        made[0].weight[0, 1] = 5.0
    assert made[1].weight[1, 0] == 5.0
    assert given[1].weight[1, 0] != 5.0
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert copy_of(tied)[1].weight is not tied[0].weight
    assert len(list(copy_of(tied).parameters())) == 3


def with_attribute(value):
    """A network whose layer keeps what `value` makes of it as an attribute."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    model[0].kept = value(model[0])
    return model


def cached(module):
    return functools.lru_cache(lambda n: module.weight * n)


def doubled(function):
    return lambda *given: 2 * function(*given)


def summed(weight):
    return lambda: 2 * weight.sum()


class Same(nn.Linear):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential])
def test_a_copy_that_is_the_original_is_refused(wrap):
    with pytest.raises(es.UsageError, match=r"its deep copy holds the parameter '.*weight' of the"):
        copy_of(wrap(Same(3, 3)))


REFUSED = {
    "closure": (lambda m: lambda x: 2 * m(x), r"'0\.kept' is a function that refers to the model"),
    "default": (lambda m: lambda x, m=m: m(x), r"'0\.kept' is a function"),
    "weight": (lambda m: summed(m.weight), "is a function"),
    "in a list": (lambda m: [{"f": lambda: m.forward}], r"'0\.kept' is a function"),
    "method": (lambda m: doubled(m.forward), "is a function"),
    "cache": (cached, "is a _lru_cache_wrapper|is a function"),
    "weak reference": (weakref.ref, "is a ReferenceType"),
    "lock": (lambda m: threading.Lock(), r"'0\.kept', a lock, cannot \(TypeError: .*pickle"),
    "generator": (lambda m: (n for n in "ab"), r"'0\.kept', a generator, cannot"),
    "hook": (lambda m: m.weight.register_hook(lambda g: g + m.weight) and None, "hook of 0.weight"),
}


@pytest.mark.parametrize(("value", "told"), REFUSED.values(), ids=REFUSED)
def test_what_no_copy_can_stand_for_is_refused_at_the_door_by_name(tmp_path, value, told):
    problem = line_problem(model=with_attribute(value))
    with pytest.raises(es.UsageError, match=f"the model cannot be copied.*{told}") as caught:
        es.sweep(problem, [0.1], steps=5, out=tmp_path)
    assert "pass a function without arguments that builds it" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "_"), REFUSED.values(), ids=REFUSED)
def test_the_same_from_a_factory_is_trained_as_it_is_made(tmp_path, value, _):
    problem = line_problem(model=lambda: with_attribute(value))
    (history,) = es.sweep(problem, [0.1], steps=5, optimizer="sgd", out=tmp_path).trials
    assert history.failure is None


def test_functions_that_refer_to_nothing_of_the_model_are_no_obstacle():
    limit = 3.0
    model = with_attribute(lambda m: [lambda x: x.clamp(max=limit), torch.relu, weakref.ref(Keeps)])
    model.register_forward_hook(lambda module, given, output: output * 2)
    made, x = copy_of(model), torch.ones(2, 1)
    assert torch.equal(made(x), model(x))
