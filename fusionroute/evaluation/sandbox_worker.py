"""The interpreter behind the sandbox: reads programs, forks once per program, reports what became of each.

It is run as a script and imports nothing of this package, so that it starts fast and a fork stays small.
"""

import gc
import json
import math
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

# What a program may import: harmless on its own, or harmless behind the guard. Everything else it would have to open.
_IMPORTABLE = """
__future__ abc argparse array ast base64 binascii bisect builtins calendar cmath codecs collections collections.abc
colorsys contextlib contextvars copy copyreg csv dataclasses datetime decimal difflib doctest enum errno fnmatch
fractions functools gc graphlib hashlib heapq hmac html html.parser inspect io ipaddress itertools json keyword locale
logging math numbers operator os os.path pathlib pickle pprint queue random re reprlib secrets shlex statistics string
struct sys textwrap threading time timeit token tokenize traceback types typing unicodedata unittest urllib.parse uuid
warnings weakref zlib
"""
IMPORTABLE = tuple(_IMPORTABLE.split())
# What these import only when they are first used, which is too late behind the guard.
_IMPORTED_LATE = "_strptime _pylong atexit getopt shutil tracemalloc"
_CODECS = """
ascii base64_codec big5 bz2_codec charmap cp1250 cp1251 cp1252 cp437 cp850 euc_jp euc_kr gb18030 gb2312 gbk hex_codec
idna iso8859_15 iso8859_2 koi8_r latin_1 mac_roman punycode quopri_codec raw_unicode_escape rot_13 shift_jis
unicode_escape utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le utf_7 utf_8_sig uu_codec zlib_codec
"""
LOADED_TOO = (*_IMPORTED_LATE.split(), *(f"encodings.{name}" for name in _CODECS.split()))
# What a child may still do once the guard is up; all else that Python reports, such as opening a file, is refused.
HARMLESS = {
    "array.__new__",
    "builtins.id",
    "code.__new__",
    "compile",
    "exec",
    "function.__new__",
    "object.__delattr__",
    "object.__getattr__",
    "object.__setattr__",
    "os.putenv",
    "os.unsetenv",
    "pdb.Pdb",  # doctest makes one
    "pickle.find_class",
    "sys._getframe",  # namedtuple and typing look for the module they are called from
    "sys._getframemodulename",
    "sys.settrace",  # doctest again
    "time.sleep",
}
# What reaches beyond the child although Python does not report it.
UNREPORTED = {
    ("os", "posix"): (
        "chroot mkfifo mknod pidfd_open sched_setaffinity sched_setparam sched_setscheduler setns setpriority unshare"
    ),
    ("signal", "_signal"): "pidfd_send_signal",
}
LONGEST = 4096  # bytes of a report, of which the last count


class Refused(PermissionError):
    """A program asked for what the sandbox does not give."""


class RefusedImport(ImportError):
    """The same of a module: the standard library falls back on another where one cannot be imported."""


def main() -> None:
    orders = json.load(sys.stdin)
    limits = orders["seconds"], orders["megabytes"]
    load_modules()
    refuse_unreported()
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, all that was loaded here
    json.dump([outcome(program, *limits) for program in orders["programs"]], sys.stdout)


def load_modules() -> None:
    """Load here whatever a program may import, so that a child finds it without touching a file.

    All of it each time: what one program finds must not depend on what its neighbours name.
    """
    for name in IMPORTABLE:
        import_module(name)
    for name in LOADED_TOO:
        with suppress(ImportError):  # not every Python has them all
            import_module(name)


def refuse_unreported() -> None:
    """Put a refusal in the place of the functions that the guard would not hear of."""
    for modules, names in UNREPORTED.items():
        for module in map(import_module, modules):
            for name in names.split():
                if hasattr(module, name):
                    setattr(module, name, _refusal(f"{modules[0]}.{name}"))


def outcome(program: str, seconds: float, megabytes: int) -> str:
    """``passed``, ``timed out``, ``refused: …`` or ``failed: …``.

    Only what follows the token counts, which the child alone knows and writes after the program's last line; its exit
    status proves nothing, nor does what the program itself writes into the pipe.
    """
    token = os.urandom(8).hex().encode()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(program, write_end, token, seconds, megabytes)
    os.close(write_end)
    report, is_over = _listen(read_end, seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read_end)
    _, found, verdict = report.rpartition(token)
    if found:
        return verdict.decode(errors="replace")
    return _ending(status) if is_over else "timed out"


def _listen(pipe: int, seconds: float) -> tuple[bytes, bool]:
    """The last bytes of what is written into the pipe, and whether its writer was done in time."""
    deadline = time.monotonic() + seconds
    report = b""
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(pipe, 2**16)
        if not piece:
            return report, True
        report = (report + piece)[-LONGEST:]
        if time.monotonic() > deadline:
            break
    return report, False


def _ending(status: int) -> str:
    """Of a child that is gone without a report; the signal is our own where it closed the pipe and stayed."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return f"failed: ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return "failed: it left before its last line"


def _child(program: str, write_end: int, token: bytes, seconds: float, megabytes: int) -> NoReturn:
    """The child leaves by `os._exit`, whatever the program does, also to the functions that are used here."""
    report, leave, reason, passed = os.write, os._exit, _reason, token + b"passed"
    try:
        _limit(seconds, megabytes)
        _silence()
        answer = types.ModuleType("answer")
        sys.modules["answer"] = sys.modules["__main__"] = answer  # pickle, dataclasses and doctest look there
        code = compile(program, "answer", "exec")
        sys.addaudithook(_guard)
        exec(code, vars(answer))
        report(write_end, passed)
    except BaseException as error:
        report(write_end, token + reason(error))
    finally:
        leave(0)


def _reason(error: BaseException) -> bytes:
    if isinstance(error, (Refused, RefusedImport)):
        return f"refused: {error}".encode(errors="replace")
    text = f"failed: {type(error).__name__}: {error}"[:300]
    return text.removesuffix(": ").encode(errors="replace")


def _limit(seconds: float, megabytes: int) -> None:
    cpu, memory = math.ceil(seconds) + 1, megabytes * 2**20  # the clock comes first, so that it is named
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _guard(event: str, details: tuple) -> None:
    if event in HARMLESS:
        return
    if event == "import":
        raise RefusedImport(f"a program in the sandbox may not import {details[0]}", name=details[0])
    raise Refused(f"a program in the sandbox may not use {event}")


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Refused(f"a program in the sandbox may not use {name}")

    return refuse


if __name__ == "__main__":
    main()
