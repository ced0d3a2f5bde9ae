from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftercall.call import Agent, Analysis, Cost, CostItem, Turn
from aftercall.event import CallEvent
from aftercall.example import example_event
from aftercall.templates import MAX_CHARACTERS, Template
from tests.samples import a_call, an_event


def rendered(source: str, event: CallEvent | None = None, escape: Any = None) -> str:
    return Template(source, escape).render(event or an_event(tags={"client": "acme"}))


def escape(text: str) -> str:
    return f"<{text}>"


# What a template sees


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ event.type }} {{ event.data.sequence }}", "call.ended 2"),
        ("{{ call.agent.name }} spoke for {{ call.duration_ms|minutes }}", "Front desk spoke for 3:05"),
        ("{{ call.from }}", "+15550100123"),
        ("{{ tags.client }}{{ tags.nobody }}", "acme"),
        ("{% for turn in call.transcript if turn.role == 'agent' %}{{ turn.text }};{% endfor %}",
         "Okafor Tailors, good morning.;Tuesday at ten it is.;"),
        ("{{ call.transcript[0].text|upper|truncate(10) }}", "OKAFOR..."),
        ("{% if call.analysis.successful %}yes{% else %}no{% endif %}", "yes"),
        ("{% set who = call.agent.name %}{{ who ~ '!' }}", "Front desk!"),
        ("{% for turn in call.transcript %}{{ loop.index }}{{ ' ' if not loop.last }}{% endfor %}", "1 2 3 4"),
    ],
)  # fmt: skip
def test_it_sees_the_event_its_call_and_its_tags(source: str, text: str) -> None:
    assert rendered(source) == text


def test_a_field_is_read_before_a_method_of_the_same_name() -> None:
    cost = Cost(total="0.30", items=[CostItem(name="llm", amount="0.10"), CostItem(name="tts", amount="0.20")])
    source = "{% for item in call.cost.items %}{{ item.name }} {% endfor %}"

    assert rendered(source, an_event(call=a_call(cost=cost))) == "llm tts "
    source = "{% for key, value in call.metadata.items() %}{{ key }}={{ value }}{% endfor %}"
    assert rendered(source, an_event(call=a_call(metadata={"lead": 7}))) == "lead=7"


# What is not known


@pytest.mark.parametrize(
    "source",
    [
        "{{ call.error }}",
        "{{ call.analysis }}",
        "{{ call.analysis.summary }}",
        "{{ call.analysis.custom.anything.at.all }}",
        "{{ call.metadata.nothing }}",
        "{{ call.transcript[99].text }}",
        "{{ call.duration_ms|minutes }}",
        "{% for turn in call.transcript %}said{% endfor %}",
        "{% for item in call.cost.items %}paid{% endfor %}",
        "{% if call.error %}failed{% endif %}",
        "{% if call.error is not none %}failed{% endif %}",
        "{% if call.error is defined %}failed{% endif %}",
    ],
)
def test_what_is_null_or_not_there_is_nothing(source: str) -> None:
    bare = a_call(analysis=None, transcript=None, duration_ms=None, cost=None, error=None)

    assert rendered(source, an_event(call=bare)) == ""


def test_what_is_null_can_be_asked_for_and_given_another_word() -> None:
    bare = an_event(call=a_call(agent=Agent(), analysis=None))

    assert rendered("{{ call.agent.name or 'somebody' }}", bare) == "somebody"
    assert rendered("{{ call.agent.name|default('somebody') }}", bare) == "somebody"
    assert rendered("{{ 'unknown' if call.agent.name is none }}", bare) == "unknown"


@pytest.mark.parametrize(("value", "text"), [(False, "False"), (0, "0"), ("", ""), ([], "[]")])
def test_what_is_false_is_not_nothing(value: Any, text: str) -> None:
    assert rendered("{{ call.metadata.value }}", an_event(call=a_call(metadata={"value": value}))) == text


# What is refused when it is configured


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ call.agnt.name }}", 'call has no agnt; did you mean "agent"?'),
        ("{{ call.agent.nam }}", 'call.agent has no nam; did you mean "name"?'),
        ("{{ event.data.call.transcrip }}", 'did you mean "transcript"?'),
        ("{% if call.analisys %}{% endif %}", 'did you mean "analysis"?'),
        ("{% for t in call.transcripts %}{% endfor %}", 'did you mean "transcript"?'),
        ("{{ caller }}", "there is no caller to ask about, only event, call, tags"),
        ("{{ summary }}", "there is no summary to ask about"),
        ("{{ range(9) }}", "there is no range"),
        ("{{ lipsum() }}", "there is no lipsum"),
        ("{{ self }}", "there is no self"),
        ("{% macro m() %}{% endmacro %}{{ m() }}", "there is no m"),  # its text would be escaped as a value
        ("{{ call.id", "not a Jinja template: "),
        ("one\n{% if %}", "(line 2)"),
        ("{{ call.id|no_such_filter }}", "not a Jinja template: No filter named 'no_such_filter'"),
        ("{% nonsense %}", "not a Jinja template: "),
    ],
)
def test_what_no_event_has_is_refused_with_the_likely_meaning(source: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Template(source)

    assert why in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% for turn in call.transcript %}" * 30 + "{% endfor %}" * 30,
        "{% if call.id %}" * 500 + "{% endif %}" * 500,
    ],
)
def test_what_is_nested_deeper_than_can_be_compiled_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        Template(source)


def test_names_of_its_own_and_free_form_data_are_not_asked_about() -> None:
    for source in (
        "{% set name = 1 %}{{ name }}",
        "{% for x in call.transcript %}{{ x.anything }}{% endfor %}",
        "{{ call.metadata.crm.id }}{{ call.variables.x }}{{ tags.x }}{{ call.analysis.custom.x.y }}",
    ):
        Template(source)


# The sandbox


@pytest.mark.parametrize(
    "source",
    [
        "{{ call.__class__ }}",
        "{{ call.id.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ call.metadata.__init__.__globals__ }}",
        "{{ (call.id|attr('format')).__self__ }}",
        "{{ '{0.__class__}'.format(call) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{% set x = [].__class__ %}{{ x }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner() }}{{ namespace() }}",
        "{{ call.transcript.append(1) }}",
        "{{ call.metadata.update({'a': 1}) }}",
        "{{ event.clear() }}",
        "{% include 'secrets' %}",
        "{% import 'os' as os %}",
        "{% extends 'secrets' %}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    event = an_event(call=a_call(metadata={"a": 0}))
    try:
        text = Template(source).render(event)
    except ValueError:
        text = ""

    assert not any(word in text for word in ("class", "<built", "module", "Undefined", "mappingproxy", "object"))
    assert event == an_event(call=a_call(metadata={"a": 0}))


def test_none_of_jinjas_own_functions_is_there_under_whatever_name() -> None:
    for name in ("range", "lipsum", "cycler", "dict", "namespace"):
        assert rendered(f"{{% set {name} = {name} %}}{{{{ {name} }}}}") == ""


def test_an_event_is_not_changed_by_a_template() -> None:
    event = an_event()
    with pytest.raises(ValueError, match="SecurityError"):
        rendered("{% set turns = call.transcript %}{{ turns.pop() }}", event)

    assert event == an_event()


def test_a_template_that_cannot_be_applied_says_no_more_than_the_kind_of_error() -> None:
    with pytest.raises(ValueError) as caught:
        rendered("{{ call.analysis.summary / 2 }}")

    assert str(caught.value) == "the template cannot be applied: TypeError"
    assert caught.value.__suppress_context__


def test_a_long_text_is_cut() -> None:
    event = an_event(call=a_call(transcript=[Turn(role="user", text="x" * 1000)] * 1000))

    assert len(rendered("{% for t in call.transcript %}{{ t.text }}{% endfor %}", event)) == MAX_CHARACTERS


# Escaping


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("*bold* {{ call.id }} _here_", "*bold* <call_7f3> _here_"),
        ("{{ call.error }}.", "<>."),
        ("{{ call.agent.name|upper }}", "<FRONT DESK>"),
        ("{{ call.agent.name|safe }}", "<Front desk>"),
        ("{{ call.agent.name|e }}", "<Front desk>"),
        ("{{ call.id ~ '&' }}", "<call_7f3&>"),
        ("{{ 'written' }}", "<written>"),
        ("{% for turn in call.transcript[:1] %}- {{ turn.text }}\n{% endfor %}", "- <Okafor Tailors, good morning.>\n"),
        ("{{ call.duration_ms }}", "<185400>"),
        ("{% raw %}{{ call.id }}{% endraw %}", "{{ call.id }}"),
    ],
)
def test_values_are_escaped_and_the_templates_own_text_is_not(source: str, text: str) -> None:
    assert rendered(source, escape=escape) == text


@settings(max_examples=50)
@given(st.text())
def test_nothing_that_was_said_is_taken_for_a_template_or_escapes_the_escape(said: str) -> None:
    event = an_event(call=a_call(analysis=Analysis(summary=f"{{{{ 7*7 }}}}{{% raw %}}{said}")))

    assert rendered("{{ call.analysis.summary }}", event, lambda text: str(len(text))) == str(len(said) + 18)


def test_the_example_has_something_for_every_common_field() -> None:
    source = "{{ call.agent.name }}|{{ call.analysis.summary }}|{{ call.duration_ms|minutes }}|{{ call.recording.url }}"
    assert all(rendered(source, example_event()).split("|"))
