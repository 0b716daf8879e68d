"""A grammar engine that does what a grammar's text tells it: VERB or VERB:ARGUMENT."""

import ctypes
import os
import time
from dataclasses import dataclass

from ramify.srt.constrained.base import GrammarError, Prepared
from ramify.srt.errors import ConfigError

kept = []  # what the verb `keep` never gives back


class Panic(BaseException):
    """As engines in Rust raise it: no Exception."""


class Matcher:
    """Takes anything, as slowly as the verb `drag` says."""

    def __init__(self, text):
        verb, _, argument = text.partition(":")
        self.work_s = float(argument) if verb == "drag" else 0.0

    def is_finished(self):
        return self.work_s == 0

    def fill(self, row):
        ends = time.thread_time() + self.work_s
        while time.thread_time() < ends:
            pass
        row[:] = 1
        return True

    def accept(self, token):
        return True

    def forced(self):
        return []


@dataclass
class Grammar:
    text: str
    vocabulary: object
    nbytes: int = 1000
    unenforced: tuple[str, ...] = ()
    held: object = None

    def new_matcher(self):
        return Matcher(self.text)


def deep(n: int) -> int:
    return deep(n + 1) + 1


class ScriptedEngine:
    name = "scripted"

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def prepare(self, spec):
        return Prepared(spec.kind, spec.text)

    def build(self, prepared):
        verb, _, argument = prepared.text.partition(":")
        if verb == "count":
            with open(argument, "a") as log:
                print(os.getpid(), file=log)
        elif verb == "sleep":
            time.sleep(float(argument))
        elif verb == "stuck":  # holds the interpreter lock, as an engine may
            ctypes.PyDLL(None).sleep(60)
        elif verb == "allocate":
            bytearray(int(argument))
        elif verb == "keep":
            kept.append(bytearray(int(argument)))
        elif verb == "abort":
            os.abort()
        elif verb == "crash":
            ctypes.string_at(1)
        elif verb == "bug":
            raise ZeroDivisionError
        elif verb == "deep":
            deep(0)
        elif verb == "refuse":
            raise GrammarError("unsupported_schema", argument)
        elif verb == "panic_in" and os.getpid() == int(argument):
            raise Panic
        elif verb == "hold":
            return Grammar(
                prepared.text, self.vocabulary, held=ctypes.create_string_buffer(int(argument))
            )
        return Grammar(prepared.text, self.vocabulary)


def load(name: str, vocabulary) -> ScriptedEngine:
    assert vocabulary.size == 1001
    if name == "another":
        raise ConfigError(f"no engine is called {name}")
    return ScriptedEngine(vocabulary)
