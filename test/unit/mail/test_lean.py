"""Values that are made quickly: what is given, what is not, and what cannot be lean."""

from dataclasses import dataclass, field, replace

import pytest

from mailgate.mail.lean import lean


@lean
@dataclass(frozen=True, slots=True)
class Base:
    first: int
    second: str = "two"


@lean
@dataclass(frozen=True, slots=True)
class Derived(Base):
    third: tuple[int, ...] = ()


def test_fields_are_given_by_place_and_by_name():
    assert Derived(1, third=(3,)) == Derived(first=1, second="two", third=(3,))
    assert repr(Derived(1)).endswith("Derived(first=1, second='two', third=())")


def test_what_has_no_default_must_be_given():
    with pytest.raises(TypeError, match="first"):
        Base()


def test_equal_values_are_one_key():
    assert len({Base(1), Base(1), Base(2)}) == 2


def test_a_copy_may_differ_in_a_field():
    assert replace(Derived(1), second="2") == Derived(1, "2")


def test_there_is_room_for_the_fields_alone():
    with pytest.raises(AttributeError):
        object.__setattr__(Base(1), "other", 1)


@dataclass
class Open:
    first: int


@dataclass(frozen=True)
class Factory:
    first: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class NotGiven:
    first: int = field(init=False, default=1)


@pytest.mark.parametrize("cls", [Open, Factory, NotGiven, int])
def test_what_cannot_be_lean_says_so(cls):
    with pytest.raises(TypeError, match=cls.__name__):
        lean(cls)
