"""Whatever can be called runs as it does here, or is refused by name, with what to do instead, before anything is sent."""

import asyncio
import functools
import io
import logging
import pickletools
import socket
import sqlite3
import threading
import types

import pytest

from fabric.errors import InvalidRequest
from fabric.sdk import functions
from fabric.sdk.functions import pack_call
from tests.functions.afar import call, submitted


@pytest.fixture(autouse=True)
def _far(far_side, monkeypatch):
    monkeypatch.setenv("AFAR_SOCKET", far_side)


class Adder:
    def __init__(self, much):
        self.much = much

    def add(self, x):
        return x + self.much

    __call__ = add

    @classmethod
    def made(cls, x):
        return cls(x).add(1)

    @staticmethod
    def still(x):
        return -x

    async def later(self, x):
        await asyncio.sleep(0)
        return self.add(x)


def traced(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return ("traced", function(*args, **kwargs))

    return inner


@traced
def decorated(x):
    return x + 1


async def coroutine(x):
    await asyncio.sleep(0)
    return x + 1


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def counter():
    count = 0

    def up():
        nonlocal count
        count += 1
        return count

    return lambda: (up(), up())


CALLS = [
    (functools.partial(pow, 2), (5,), 32),
    (functools.partial(functools.partial(decorated), x=1), (), ("traced", 2)),
    (Adder(2).add, (1,), 3),
    (Adder(2), (1,), 3),
    (Adder.made, (1,), 2),
    (Adder.still, (1,), -1),
    (lambda x: x * 2, (4,), 8),
    (decorated, (1,), ("traced", 2)),
    (coroutine, (1,), 2),
    (Adder(2).later, (1,), 3),
    (functools.partial(coroutine, 4), (), 5),
    (traced(fibonacci), (10,), ("traced", 55)),
    (counter(), (), (1, 2)),
    (str, (1,), "1"),
    ("a-b".split, ("-",), ["a", "b"]),
    (functools.lru_cache(fibonacci), (9,), 34),
    (max, (1, 2), 2),
]


@pytest.mark.parametrize(("function", "args", "value"), CALLS, ids=lambda value: getattr(value, "__qualname__", ""))
def test_whatever_can_be_called_runs_as_here(function, args, value):
    assert call(function, *args) == value


def asserting(x, *, least=0):
    assert x > least, f"{x} is too little"
    return [each for each in (x,) if asserts_inside(each)]


def asserts_inside(x):
    def inner():
        assert x
        return True

    return inner()


def test_a_function_of_a_test_needs_no_pytest_where_it_runs():
    """pytest rewrites asserts, and these then need pytest."""
    packed = pack_call(asserting, (1,), {"least": 0})
    named = {argument for _, argument, _ in pickletools.genops(packed.pickled) if isinstance(argument, str)}
    assert not {name for name in named if "pytest" in name and "/" not in name}
    assert call(asserting, 1) == [1]
    assert "AssertionError: 0 is too little" in submitted(asserting, 0)["end"]["error"]


def test_a_coroutine_that_is_returned_runs_to_its_end():
    assert call(lambda x: coroutine(x + 1), 0) == 2


def test_tasks_inside_an_async_function_run_to_its_end():
    async def many():
        return await asyncio.gather(*(coroutine(n) for n in range(3)))

    assert call(many) == [1, 2, 3]


CACHED = (
    "from tests.functions.afar import call\n"
    """
import functools
@functools.cache
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
@functools.lru_cache(maxsize=7)
def up(n): return n + 1
print(call(fibonacci, 90), call(lambda n: (up(n), up.cache_info().maxsize), 1), call(lib.down, 2), call(lambda: lib.down(3)))
"""
)
LIB = "import functools\n@functools.cache\ndef down(n): return n - 1"


def test_a_function_with_a_cache_runs_wherever_it_is_defined(project):
    told = project({"main.py": "import lib\n" + CACHED, "lib.py": LIB})
    assert told == "2880067194370816120 (2, 7) 1 2\n"


def numbers(n):
    yield from range(n)


async def later_numbers(n):
    for number in range(n):
        yield number


class Stream:
    def __call__(self):
        yield 1


@pytest.mark.parametrize(
    "function",
    [numbers, later_numbers, functools.partial(numbers, 3), Stream()],
    ids=["def", "async", "partial", "object"],
)
def test_a_generator_is_refused_with_the_remedy(function):
    with pytest.raises(InvalidRequest, match=r"is a generator.*list\(") as refusal:
        pack_call(function, (3,), {})
    assert refusal.value.code == "generator"


def test_a_generator_that_is_returned_is_told_with_the_remedy():
    end = submitted(lambda: numbers(3))["end"]
    assert end["error"].startswith("result_not_picklable: the result, a generator, can't be pickled")
    assert "list(...)" in end["error"]


class Config:
    def __init__(self, **values):
        self.__dict__.update(values)


def holding(value):
    inner = Config(deep=[{"thing": value}])
    return lambda: inner


MODULE = types.ModuleType("made_up_module")
exec("class Thing:\n    pass\ndef make():\n    return Thing()", vars(MODULE))

UNSENDABLE = [
    (threading.Lock, "lock", "create it inside the function"),
    (threading.RLock, "RLock", "create it inside the function"),
    (threading.Event, "Event", "create it inside the function"),
    (lambda: socket.socket(socket.AF_UNIX), "socket", "connect inside the function"),
    (lambda: sqlite3.connect(":memory:"), "Connection", "connect inside the function"),
    (lambda: open(__file__), "TextIOWrapper", "pass its path and open it inside the function"),  # noqa: SIM115, PTH123
    (lambda: open(__file__, "rb"), "BufferedReader", "pass its path and open it inside the function"),  # noqa: SIM115, PTH123
    (lambda: numbers(3), "generator", "pass what it yields as a list"),
    (lambda: (n for n in "ab"), "generator", "pass what it yields as a list"),
]


@pytest.mark.parametrize(
    ("make", "kind", "remedy"), UNSENDABLE, ids=[f"{n}-{each[1]}" for n, each in enumerate(UNSENDABLE)]
)
@pytest.mark.parametrize("where", ["argument", "keyword", "closure", "attribute", "partial", "method"])
def test_what_cannot_leave_its_process_is_named_with_the_remedy(make, kind, remedy, where):
    thing = make()
    config = Config(thing=thing, text="x" * 9)
    function, args, kwargs, title = {
        "argument": (len, ([1, thing],), {}, r"argument 0\[1\]"),
        "keyword": (dict, (), {"a": {"b": thing}}, r"argument a=\['b'\]"),
        "closure": (lambda: (config, 1), (), {}, r"variable 'config' of .*<lambda>\.thing"),
        "attribute": (len, (config,), {}, r"argument 0\.thing"),
        "partial": (functools.partial(len, config), (), {}, r"argument 0 of the partial\.thing"),
        "method": (types.MethodType(lambda self: self, config), (), {}, r"the object of the method .*\.thing"),
    }[where]
    with pytest.raises(InvalidRequest) as refusal:
        pack_call(function, args, kwargs)
    assert refusal.value.code == "unpicklable"
    assert refusal.match(rf"^{title}.*\({kind}\) can't be pickled \(.*\): {remedy}")
    assert "\n" not in refusal.value.message
    if hasattr(thing, "close"):
        thing.close()


def test_a_coroutine_instead_of_a_function_is_refused(recwarn):
    made = coroutine(1)
    with pytest.raises(InvalidRequest, match="pass the function and its arguments"):
        pack_call(len, (made,), {})
    made.close()


def test_loggers_modules_and_standard_streams_go_along():
    def job():
        logging.getLogger("mine").warning("said")
        return json_.dumps({"a": stream is not None, "b": log.name})

    import json as json_
    import sys

    stream, log = sys.stdout, logging.getLogger("mine")
    function = types.FunctionType(job.__code__, {**globals()}, "job", None, job.__closure__)
    if not isinstance(stream, io.TextIOWrapper) or stream.name == "<stdout>":
        assert call(function) == '{"a": true, "b": "mine"}'


def test_a_module_that_came_from_no_file_travels_by_value(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "made_up_module", MODULE)
    made = call(MODULE.make)
    assert type(made) is MODULE.Thing, "the caller's own class comes back"


def test_arguments_beyond_the_limit_are_refused_with_the_largest(monkeypatch):
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(functions, "CALL_BYTES_MAX", 1 << 20)
    table = numpy.zeros(1 << 20)
    for function, args, title in (
        (len, (1, table), "argument 1"),
        (lambda: table, (), "variable 'table' of"),
        (len, ([bytes(1 << 19)] * 2 + [bytes(1 << 20)],), "argument 0"),
    ):
        with pytest.raises(
            InvalidRequest, match=rf"may have 1 MiB, and have more; {title}.* has [0-9]+ MiB: write it to"
        ) as no:
            pack_call(function, args, {})
        assert no.value.code == "arguments_too_large"


def test_a_tensor_on_a_device_of_this_machine_is_refused():
    torch = pytest.importorskip("torch")

    class OnCuda(torch.Tensor):
        device = types.SimpleNamespace(type="cuda")

    with pytest.raises(InvalidRequest, match=r"argument 0 \(OnCuda\).*lies on this machine's cuda.*x\.cpu\(\)"):
        pack_call(len, (torch.zeros(2).as_subclass(OnCuda),), {})
    assert call(lambda x: x.sum().item(), torch.ones(3)) == 3.0


@pytest.mark.parametrize(("value", "remedy"), [("ref", "pass its value, ray.get"), ("actor", "make the actor inside")])
def test_what_belongs_to_another_ray_cluster_is_refused(value, remedy):
    ray = pytest.importorskip("ray")
    made = ray.ObjectRef(b"x" * 28) if value == "ref" else object.__new__(ray.actor.ActorHandle)
    if value == "actor":
        vars(made).update(_ray_weak_ref=True, _method_shells={})
    with pytest.raises(InvalidRequest, match=rf"argument 0\['x'\] .*this program's own Ray cluster.*{remedy}"):
        pack_call(len, ({"x": made},), {})


def test_a_log_has_what_is_printed_in_the_order_in_which_it_was_printed():
    def job():
        import os
        import subprocess
        import sys

        for number in range(50):
            print("out", number)
            print("err", number, file=sys.stderr)
            os.write(1, f"raw {number}\n".encode())
            sys.stdout.buffer.write(b"bytes %d\n" % number)
            sys.stdout.flush()
        subprocess.run(["sh", "-c", "echo child; echo 汉 >&2"], check=True)
        print("\xff".encode("latin-1").decode("utf-8", "surrogateescape"), end="")

    log = submitted(job)["log"]
    expected = "".join(f"out {n}\nerr {n}\nraw {n}\nbytes {n}\n" for n in range(50)) + "child\n汉\n\\udcff"
    assert log == expected


def test_threads_may_pack_at_once_whatever_travels_by_value(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "made_up_module", MODULE)
    failed = []

    def pack():
        for _ in range(20):
            pickled = pack_call(MODULE.make, (), {}).pickled
            if b"cmade_up_module" in pickled or b"_make_function" not in pickled:
                failed.append(pickled)

    threads = [threading.Thread(target=pack) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def wants(a, /, b, *, c):
    return a, b, c


async def awaited(a):
    return a


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "why"),
    [
        (wants, (1,), {"c": 3}, "missing a required argument: 'b'"),
        (wants, (1, 2), {}, "missing a required .*'c'"),
        (wants, (1, 2, 3), {"c": 3}, "too many positional arguments"),
        (wants, (1, 2), {"c": 3, "lr": 1}, "unexpected keyword argument 'lr'"),
        (functools.partial(wants, 1, c=3), (), {}, "'b'"),
        (functools.partial(functools.partial(wants, 1), c=3), (2, 3), {}, "too many"),
        (functools.partial(wants, 1, 2, 3), (), {"c": 3}, "incorrect arguments"),
        (Adder(1).add, (), {}, "'x'"),
        (Adder.made, (1, 2), {}, "too many"),
        (Adder.still, (), {}, "'x'"),
        (awaited, (), {}, "'a'"),
        (lambda: 1, (2,), {}, "too many"),
    ],
)
def test_a_call_that_its_function_does_not_take_is_refused_before_it_is_sent(function, args, kwargs, why):
    with pytest.raises(InvalidRequest, match=why) as refused:
        pack_call(function, args, kwargs)
    assert refused.value.code == "wrong_arguments"
    assert functools.reduce(lambda inner, _: getattr(inner, "func", inner), range(3), function).__name__ in str(
        refused.value
    )


@functools.wraps(wants)
def looks_like_it(*args):
    return args


def says_otherwise(*args):
    return args


says_otherwise.__signature__ = None
unread = types.FunctionType(says_otherwise.__code__, globals(), "unread")
unread.__signature__ = __import__("inspect").signature(wants)


@pytest.mark.parametrize(
    "function", [looks_like_it, says_otherwise, unread, dict, max, Adder(1), functools.partial(max, 1)]
)
def test_what_a_function_takes_is_never_guessed(function):
    """Only what Python itself would refuse is refused: not by a signature that a decorator has put there."""
    assert pack_call(function, (1, 2), {}).pickled
