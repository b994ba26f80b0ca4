"""Events reach every listener, nested, whatever happens in between."""

import pytest

from flora.events import Events, Listener, Phase, RoundRecord, Work
from tests.flora.toy import Recorder


class Named(Listener):
    def __init__(self, name, heard):
        self.name, self.heard = name, heard

    def phase_started(self, phase):
        self.heard.append((self.name, "started", phase.name))

    def phase_ended(self, phase):
        self.heard.append((self.name, "ended", phase.name))


def test_listeners_nest_inside_one_another():
    heard = []
    events = Events((Named("a", heard), Named("b", heard)))
    with events.phase("outer"), events.phase("inner"):
        pass
    assert heard == [
        *[("a", "started", "outer"), ("b", "started", "outer")],
        *[("a", "started", "inner"), ("b", "started", "inner")],
        *[("b", "ended", "inner"), ("a", "ended", "inner")],
        *[("b", "ended", "outer"), ("a", "ended", "outer")],
    ]


def test_a_phase_ends_when_an_exception_passes_through_it():
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), Events((recorder,)).phase("train", 2, 1):
        1 / 0  # noqa: B018
    assert recorder.heard == [("started", Phase("train", 2, 1)), ("ended", Phase("train", 2, 1))]


def test_work_ends_when_an_exception_passes_through_it_and_nests():
    heard = []

    class Steps(Listener):
        def __init__(self, name):
            self.name = name

        def work_started(self, work):
            heard.append((self.name, "started", work.kind))

        def work_ended(self, work):
            heard.append((self.name, "ended", work.kind))

    with pytest.raises(ZeroDivisionError), Events((Steps("a"), Steps("b"))).work(Work("step")):
        1 / 0  # noqa: B018
    starts = [("a", "started", "step"), ("b", "started", "step")]
    assert heard == [*starts, ("b", "ended", "step"), ("a", "ended", "step")]


def test_payloads_and_rounds_are_handed_on_as_they_are():
    recorder, record = Recorder(), RoundRecord(1, 0.5)
    events = Events((Listener(), recorder))
    events.payload(1, 2, "up", b"abc")
    events.round(record)
    assert recorder.heard == [("payload", 1, 2, "up", b"abc"), ("round", record)]


def test_without_listeners_nothing_happens():
    with Events().phase("train"):
        Events().payload(0, 0, "down", b"")
