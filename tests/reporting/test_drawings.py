"""The drawings of a graph: files of every kind, the page in a real browser, TensorBoard."""

import json
import re
from pathlib import Path

import nets
import pytest
from reporting.pages import Page, in_chromium

import etascope as es
from etascope.errors import StudyError, UsageError
from etascope.inspection.capture import capture_problem
from etascope.inspection.dot import to_dot
from etascope.inspection.graph import Edge, Graph, Group, Node, Tensor, parent
from etascope.reporting import drawings
from etascope.reporting.drawings import as_text, render_graph, write_graph
from etascope.reporting.tensorboard_graph import graph_def, write_tensorboard_graph
from etascope.schema import decode


@pytest.fixture(scope="module")
def mnist() -> Graph:
    return capture_problem(es.get_problem("mnist-cnn"))


def synthetic(nodes: int, groups: int) -> Graph:
    """A chain with skips, in groups nested three deep; flat without groups."""
    flows = Tensor((50, 10), "float32")
    made: list[Node] = []
    around: dict[str, Group] = {}
    for index in range(nodes):
        group = index * groups // nodes
        scope = f"block{group // 10}/layer{group // 3}/part{group}/" if groups else ""
        sources = [made[-1].name] if made else []
        sources += [made[index - 6].name] if index % 7 == 6 else []
        name = f"{scope}op{index}"
        made.append(Node(name, "add", tuple(Edge(s, flows) for s in sources), (flows,)))
        while name := parent(name):
            around.setdefault(name, Group(name, "Block"))
    return Graph(
        "synthetic", tuple(made), tuple(sorted(around.values(), key=lambda g: len(g.name)))
    )


def test_every_suffix_is_a_file_of_its_kind(mnist: Graph, tmp_path: Path) -> None:
    begins = {".html": b"<!doctype html>", ".svg": b"<?xml", ".png": b"\x89PNG", ".dot": b"digraph"}
    for suffix, start in begins.items():
        path = write_graph(mnist, tmp_path / "new" / f"g{suffix}")
        assert path.read_bytes().startswith(start)
    svg = (tmp_path / "new" / "g.svg").read_text(encoding="utf-8")
    for node in mnist.nodes:
        assert f"<title>{node.name}</title>" in svg


def test_what_cannot_be_drawn_is_one_sentence(
    mnist: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"cannot be drawn as 'g\.pdf'; end the name in \.html"):
        write_graph(mnist, tmp_path / "g.pdf")
    (tmp_path / "taken.dot").mkdir()
    with pytest.raises(StudyError, match=r"cannot write the graph to .*; name another file"):
        write_graph(mnist, tmp_path / "taken.dot")
    monkeypatch.setattr(drawings.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(UsageError, match=r"needs graphviz-pure; install it with: pip install"):
        write_graph(mnist, tmp_path / "g.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.dot"]


def test_es_graph_takes_problems_and_modules(tmp_path: Path) -> None:
    module, inputs = nets.cases()["shared"]
    found = es.graph(module, inputs, out=tmp_path / "a.dot")
    assert (tmp_path / "a.dot").read_text() == to_dot(found)
    with pytest.raises(UsageError, match="brings its own inputs"):
        es.graph(es.get_problem("mnist-cnn"), inputs)


def test_dot_has_every_node_edge_and_cluster_once(mnist: Graph) -> None:
    text = to_dot(mnist)
    assert text.count("{") == text.count("}")
    for node in mnist.nodes:
        assert len(re.findall(rf'^ *"{re.escape(node.name)}" \[', text, re.MULTILINE)) == 1
        for source in {edge.source for edge in node.inputs}:
            assert text.count(f'"{source}" -> "{node.name}"') == 1
    for group in mnist.groups:
        assert text.count(f'subgraph "cluster_{group.name}"') == 1


def test_hostile_names_stay_text() -> None:
    evil = '"]; </script><script>alert(1)</script>'
    graph = Graph(evil, (Node('"]; <img src=x>', evil, note=evil),), ())
    page = Page(render_graph(graph))
    assert len(page.scripts) == 5
    assert evil in page.words
    assert json.dumps(evil) in to_dot(graph)


def test_the_page_holds_the_graph_and_reads_without_scripts(mnist: Graph) -> None:
    html = render_graph(mnist)
    held = re.search(r'id="graph-data">(.*?)</script>', html, re.DOTALL)
    assert held is not None
    assert decode(Graph, json.loads(held[1])) == mnist
    assert "conv2d  [50, 32, 28, 28]  832 parameters, 62.7 MFLOP" in as_text(mnist)
    assert "832 parameters, 62.7 MFLOP" in Page(html).words


def test_tensorboard_has_every_node_with_its_inputs(mnist: Graph, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_tensorboard_graph(mnist, tmp_path)
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    read = accumulator.Graph()
    assert read == graph_def(mnist)
    assert [node.name for node in read.node] == [node.name for node in mnist.nodes]
    convolution = next(node for node in read.node if node.name == "layer1/conv2d")
    assert list(convolution.input) == ["permute"]
    assert convolution.attr["flops"].i == 62_720_000


@pytest.fixture
def show(browser, tmp_path):  # type: ignore[no-untyped-def]
    """Open a graph's page; nothing may be asked for or complained about by the end."""
    complaints: list[str] = []

    def opened(graph: Graph, width: int = 1280):  # type: ignore[no-untyped-def]
        path = write_graph(graph, tmp_path / "g.html")
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith("file:") or complaints.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#graph[data-drawn]")
        return page

    yield opened
    assert not complaints


def seen(page) -> list[str]:  # type: ignore[no-untyped-def]
    """The names of what is drawn."""
    found: list[str] = page.eval_on_selector_all(".item", "all => all.map(e => e.dataset.name)")
    return found


@in_chromium
def test_the_page_starts_closed_and_opens_groups(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    assert set(seen(page)) == {
        "input", "target", "permute", "layer1", "layer2", "fc_layer", "dropout", "layer3",
        "loss", "prediction", "train_step",
    }  # fmt: skip
    page.click("[data-name=layer1]")
    assert {"layer1/conv2d", "layer1/relu", "layer1/max_pool2d"} <= set(seen(page))
    assert page.get_attribute("[data-name=layer1]", "aria-expanded") == "true"
    page.click("[data-action=open]")
    assert set(seen(page)) == {n.name for n in mnist.nodes} | {g.name for g in mnist.groups}
    page.click("[data-action=close]")
    assert len(seen(page)) == 11


@in_chromium
def test_what_is_inside_a_group_is_drawn_inside_its_box(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    page.click("[data-action=open]")
    boxes = {
        name: page.eval_on_selector(
            f'[data-name="{name}"] > rect',
            "r => ['x', 'y', 'width', 'height'].map(k => Number(r.getAttribute(k)))",
        )
        for name in seen(page)
    }
    for name, (x, y, width, height) in boxes.items():
        if group := parent(name):
            left, top, wide, high = boxes[group]
            assert left <= x
            assert top <= y
            assert x + width <= left + wide + 0.1
            assert y + height <= top + high + 0.1


@in_chromium
def test_search_opens_what_it_finds_and_tells_of_it(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    page.fill("#graph input", "fused_adam")
    assert page.inner_text(".graph-hits") == "1 of 1"
    assert "train_step/adam/fused_adam" in seen(page)
    assert "aten._fused_adam_" in page.inner_text(".graph-details")
    page.fill("#graph input", "conv2d")
    page.press("#graph input", "Enter")
    assert page.inner_text(".graph-hits") == "2 of 4"
    page.fill("#graph input", "no such thing")
    assert page.inner_text(".graph-hits") == "nothing"


@in_chromium
def test_the_keyboard_walks_the_graph(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    page.focus("[data-name=input]")

    def at() -> str:
        name: str = page.evaluate("document.activeElement.dataset.name")
        return name

    for key, name in [
        ("ArrowDown", "permute"), ("ArrowDown", "layer1"), ("Enter", "layer1"),
        ("ArrowDown", "layer1/conv2d"), ("ArrowDown", "layer1/relu"), ("ArrowUp", "layer1/conv2d"),
        ("Escape", "layer1"), ("ArrowDown", "layer2"), ("ArrowRight", "fc_layer"),
    ]:  # fmt: skip
        page.keyboard.press(key)
        assert at() == name
    assert "layer1/conv2d" not in seen(page)
    before = page.get_attribute("#graph svg > g", "transform")
    page.keyboard.press("+")
    assert page.get_attribute("#graph svg > g", "transform") != before
    page.keyboard.press("0")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"


@in_chromium
def test_the_view_stays_when_the_window_changes_and_paper_shows_all(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    page.click("[data-action=in]")
    before = page.get_attribute("#graph svg > g", "transform")
    page.set_viewport_size({"width": 1200, "height": 880})
    page.wait_for_timeout(100)
    assert page.get_attribute("#graph svg > g", "transform") == before
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.get_attribute("#graph svg > g", "transform") is None
    assert page.get_attribute("#graph svg", "viewBox")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.get_attribute("#graph svg > g", "transform") == before


@in_chromium
def test_keys_in_the_text_are_the_texts_own(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist)
    page.click("summary")
    page.focus(".graph pre")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.tagName") == "PRE"


@in_chromium
def test_edges_into_a_closed_group_are_one_with_their_count(show) -> None:  # type: ignore[no-untyped-def]
    flow = Tensor((50, 10), "float32")
    inner = [Node(f"g/op{i}", "add", (Edge("a", flow),), (flow,)) for i in range(3)]
    graph = Graph("joined", (Node("a", "input", (), (flow,)), *inner), (Group("g", "Block"),))
    page = show(graph)
    assert page.locator(".edge").count() == 1
    assert page.text_content(".flow") == "3 of 50×10"


@in_chromium
def test_a_graph_without_nodes_is_an_empty_page(show) -> None:  # type: ignore[no-untyped-def]
    page = show(Graph("nothing", (), ()))
    page.click("[data-action=open]")
    assert seen(page) == []


@in_chromium
def test_a_narrow_page_does_not_scroll_sideways(mnist: Graph, show) -> None:  # type: ignore[no-untyped-def]
    page = show(mnist, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@in_chromium
@pytest.mark.parametrize("groups", [40, 0])
def test_two_thousand_nodes_are_all_drawn(groups: int, show) -> None:  # type: ignore[no-untyped-def]
    graph = synthetic(2000, groups)
    page = show(graph)
    page.click("[data-action=open]")
    assert len(seen(page)) == len(graph.nodes) + len(graph.groups)
    assert page.locator(".edge").count() == sum(len(node.inputs) for node in graph.nodes)
