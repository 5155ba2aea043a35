"""The renderer of untrusted templates: what they may do, what they cannot reach, and where they end."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.errors import TemplateError
from finback.text import jinja
from finback.text.jinja import MAX_OUTPUT, MAX_TEMPLATE, TemplateRenderer


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    yield TemplateRenderer()
    gc.collect()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(value=VALUES, text=st.text(max_size=50))
def test_values_arrive_as_they_are(renderer: TemplateRenderer, value: Any, text: str) -> None:
    template = (
        "{{ text }}\0{% for item in value %}{{ item is none }}{{ item is boolean }}{{ item is string }}{% endfor %}"
    )
    kinds = "".join(f"{item is None}{isinstance(item, bool)}{isinstance(item, str)}" for item in [value])
    assert renderer.render(template, {"text": text, "value": [value]}) == f"{text}\0{kinds}"


def test_text_of_every_sort(renderer: TemplateRenderer) -> None:
    text = "".join(map(chr, range(0x300))) + "\"'\\ %} {{ }} {% raw %} {# #} -%} \u2028 😀 \ufeff \U0010fffd"
    assert renderer.render("{{ x }}", {"x": text}) == text
    assert renderer.render("{{ x.a[0] }}", {"x": {"a": [text]}}) == text


def test_json_is_as_python_writes_it(renderer: TemplateRenderer) -> None:
    value = {"b": ["<é&'\">", 1, 1.5, 1e-07, None, True], "a": {}}
    assert (
        renderer.render("{{ x | tojson }}", {"x": value}) == '{"b": ["<é&\'\\">", 1, 1.5, 1e-07, null, true], "a": {}}'
    )
    assert renderer.render("{{ x | tojson(indent=2) }}", {"x": [1]}) == "[\n  1\n]"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '  ab '.strip() }}|{{ 'xabx'.strip('x') }}|{{ 'ab'.rstrip('b') }}|{{ 'ab'.lstrip('a') }}", "ab|ab|a|b"),
        ("{{ 'a-b-c'.split('-')[-1] }}{{ 'a-b-c'.split('-', 1)[1] }}", "cb-c"),
        ("{{ 'abc'.startswith('a') }}{{ 'abc'.endswith('b') }}", "TrueFalse"),
        ("{{ 'abc'.replace('b', 'x') }}{{ 'aB'.upper() }}{{ 'aB'.lower() }}{{ 'ab'.title() }}", "axcABabAb"),
        ("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
        ("{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b', 'z') }}{{ 'a' in {'a': 1} }}", "1zTrue"),
        ("{{ [1, 2, 3][::-1] }}{{ [1, 2, 3][1:] }}{{ 'abc'[:2] }}", "[3, 2, 1][2, 3]ab"),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{{ loop.last }}{% endfor %}",
            "1False3True",
        ),
        ("{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{% set x %}a{% endset %}{{ x ~ 'b' }}{{ x | length }}", "ab1"),
        ("{{ [{'t': 'a', 'u': 1}] | selectattr('t', 'equalto', 'a') | map(attribute='u') | join(',') }}", "1"),
        ("{{ undefined_name }}{{ undefined_name is defined }}{{ undefined_name | default('d') }}", "Falsed"),
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("{%- generation -%} a {%- endgeneration %}{% generation %}b{% endgeneration %}", "ab"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ],
)
def test_what_published_templates_use(renderer: TemplateRenderer, template: str, expected: str) -> None:
    assert renderer.render(template, {}) == expected
    assert renderer.render(template, {"x": [1]}) == expected


def test_variables_change_nothing_else(renderer: TemplateRenderer) -> None:
    template = "\n  {% if true %}\na{% endif %}\n"
    assert renderer.render(template, {"x": 1}) == renderer.render(template, {}) == "\na"
    assert renderer.render("{% macro f() %}{{ x }}{% endmacro %}{{ f() }}", {"x": 1}) == "1"
    assert renderer.render("{{ x is defined }}{{ x is none }}{{ y is defined }}", {"x": None}) == "TrueTrueFalse"


def test_refusals_are_reported(renderer: TemplateRenderer) -> None:
    with pytest.raises(TemplateError, match="refuses this conversation: no system"):
        renderer.render("{{ raise_exception('no ' ~ x) }}", {"x": "system"})
    with pytest.raises(TemplateError, match="failed: syntax error"):
        renderer.render("{% if %}", {})
    with pytest.raises(TemplateError, match="failed: undefined value"):
        renderer.render("{{ a.b.c }}", {})


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "x.__class__.__base__.__subclasses__()",
        "x['__class__']['__init__']",
        "x | attr('__class__') | attr('__mro__')",
        "(x | attr('__class__')).__mro__",
        "x.append",
        "x.append.__self__",
        "m.items.__globals__",
        "m.update",
        "raise_exception.__globals__",
        "raise_exception.func_globals",
        "raise_exception | attr('__globals__')",
        "raise_exception.__code__.co_consts",
        "strftime_now.__init__.__globals__['os']",
        "strftime_now.__builtins__",
        "self.__init__.__globals__.__builtins__",
        "self._TemplateReference__context",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "joiner.__init__.__globals__",
        "lipsum.__globals__['os'].popen('id').read()",
        "get_flashed_messages.__globals__",
        "config.items()",
        "request.application.__globals__",
        "namespace.__init__",
        "range.__class__",
        "loop.__class__",
        "().__class__.__bases__[0]",
        "dict.mro()",
        "'%c'|format(97).__class__.__mro__",
        "'{0.__class__.__mro__}'.format(x)",
        "'{a.__class__}'.format_map(m)",
        "x.__reduce__()",
        "x.__getattribute__('__class__')",
        "m.__init_subclass__",
        "m | map(attribute='__class__') | list",
        "[x] | map(attribute='__class__.__mro__') | list",
        "[x] | selectattr('__class__') | list",
        "[x] | groupby('__class__')",
        "[x] | sum(attribute='__class__')",
        "x | tojson(cls=x)",
        "x | tojson(default=raise_exception)",
    ],
)
def test_no_object_of_pythons_is_within_reach(renderer: TemplateRenderer, expression: str) -> None:
    try:
        text = renderer.render("{{ " + expression + " }}", {"x": [1], "m": {"a": 1}})
    except TemplateError:
        return
    for sign in ("class", "built-in", "function", "method", "<", "0x", "module", "object", "uid="):
        assert sign not in text


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends '/etc/passwd' %}",
        "{% from '../../x' import y %}",
    ],
)
def test_no_file_is_within_reach(renderer: TemplateRenderer, template: str) -> None:
    with pytest.raises(TemplateError, match="template not found"):
        renderer.render(template, {})


DOUBLE = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ENLARGE %}{% endfor %}{{ ns.x | length }}"
)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 10**9) | length }}",
        "{% for i in range(9000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 'a\nb' | indent(10**9) | length }}",
        "{{ '%1000000000d' | format(1) | length }}",
        DOUBLE.replace("ENLARGE", "ns.x ~ ns.x"),
        DOUBLE.replace("ENLARGE", "ns.x + ns.x"),
        "{{ " + "-" * 100_000 + "1 }}",
        "{{ " + "not " * 50_000 + "1 }}",
        "{{ " + "(" * 100_000,
        "{{ " + "[" * 100_000,
        "{{ x" + ".a" * 80_000 + " }}",
        "{{ x" + "|trim" * 40_000 + " }}",
        "{{ 1" + "+1" * 100_000 + " }}",
        "{% if 1 %}" * 25_000,
    ],
    ids=range(19),
)
def test_templates_that_would_never_end_or_burst(renderer: TemplateRenderer, template: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError):
        renderer.render(template, {})
    assert time.monotonic() - started < 60
    assert renderer.render("still {{ x }}", {"x": "here"}) == "still here"


@pytest.mark.parametrize("enlarge", ["ns.x | replace('a', 'aa')", "[ns.x, ns.x] | join", "ns.x * 2"])
def test_time_is_bounded_by_the_clock(enlarge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = TemplateRenderer()
    assert renderer.render("a", {}) == "a"
    monkeypatch.setattr(jinja, "RENDER_SECONDS", 0.5)
    template = DOUBLE.replace("ENLARGE", enlarge).replace("range(60)", "range(10**4)")
    started = time.monotonic()
    with pytest.raises(TemplateError):
        renderer.render(template, {})
    assert time.monotonic() - started < 10


def test_long_templates_are_refused_unread(renderer: TemplateRenderer) -> None:
    with pytest.raises(TemplateError, match="characters"):
        renderer.render("a" * (MAX_TEMPLATE + 1), {})


def test_long_conversations(renderer: TemplateRenderer) -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 2000
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert renderer.render(template, {"messages": messages}) == ("<user>" + "x" * 1000) * 2000
    assert MAX_OUTPUT > 4_000_000


def test_a_helper_that_died_is_replaced(renderer: TemplateRenderer) -> None:
    assert renderer.render("a", {}) == "a"
    helper = renderer._helper
    assert helper is not None
    helper.kill()
    helper.wait()
    assert renderer.render("b", {}) == "b"


def test_threads_share_a_renderer(renderer: TemplateRenderer) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda n: renderer.render("{{ n }}" * 50, {"n": n}), range(100))
    assert list(results) == [str(n) * 50 for n in range(100)]


def test_the_helper_ends_with_its_renderer() -> None:
    renderer = TemplateRenderer()
    renderer.render("a", {})
    helper = renderer._helper
    assert helper is not None
    assert helper.poll() is None
    del renderer
    gc.collect()
    assert helper.poll() is not None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_the_helper_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hush")
    renderer = TemplateRenderer()
    renderer.render("a", {})
    assert renderer._helper is not None
    with open(f"/proc/{renderer._helper.pid}/environ") as environment:
        assert "hush" not in environment.read()
