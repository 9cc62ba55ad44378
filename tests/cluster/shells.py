"""A guarded actor in this process, behind what looks like Ray's handle of it."""

import asyncio

from fabric.system.guarded import Admitted, Guarded, sealed


class Inside:
    """What is guarded."""

    def __init__(self, said="hello"):
        self.said = said

    async def greet(self, name):
        return f"{self.said} {name}"

    async def _hidden(self):
        return "hidden"


class Shell(Guarded):
    INSIDE = Inside
    TENANTS = True  # this process is nobody's but the tests'


class Method:
    def __init__(self, call):
        self.remote = lambda *given, **options: asyncio.ensure_future(call(*given, **options))


class Handle:
    """Of an actor that is here."""

    def __init__(self, shell):
        self.shell = shell
        self.call, self.who = Method(shell.call), Method(shell.who)


def shell_of(inside, secret):
    """A handle of an actor with this inside, which has heard its secret."""
    shell = Shell(*sealed(secret))
    shell._inside, shell._secret = inside, secret
    return Handle(shell)


def admitted(secret, **options):
    """A new actor, and who may call it."""
    return Admitted(Handle(Shell(*sealed(secret, **options))), secret)
