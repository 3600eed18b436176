"""What can be refused before vLLM is imported, which takes many seconds."""

import argparse
import errno
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from fastgen_vllm.models.embedded import default_model_dir
from fastgen_vllm.server.config_file import read_config_file

#: Where a server listens that is not told.
HOST = "127.0.0.1"
PORT = 8000

#: An argument that may be the value of an option that is unknown here, but names no model.
_NUMBER = re.compile(r"[\d.]+[kKmMgGtT]?")


def check(arguments: Sequence[str]) -> None:
    """Refuse a server that could not listen, or whose default model has no place to be.

    Only what is certain without vLLM's own parser is looked at.

    Args:
        arguments: of `serve`.

    Raises:
        ValueError, OSError: names the option or the folder, and what to do.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in ("--host", "--port", "--uds", "--config", "--model"):
        parser.add_argument(option)
    parser.add_argument("--headless", action="store_true", default=None)
    try:
        known, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return
    given = {} if known.config is None else read_config_file(known.config)
    given |= {name: value for name, value in vars(known).items() if value is not None}
    if not given.get("headless"):
        if path := given.get("uds"):
            _check_socket(str(path))
        else:
            _check_address(str(given.get("host", HOST)), str(given.get("port", PORT)))
    if "model" not in given and not any(map(_may_be_model, others)):
        default_model_dir()


def _check_address(host: str, port: str) -> None:
    """Bind as vLLM will."""
    if not port.isdecimal():
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(
                    f"--host {host} --port {port}: {error.strerror}. Give an address of this "
                    "machine and a port that this user may have, such as one above 1023."
                ) from error
            raise ValueError(
                f"--port {port}: something listens on {host}:{port} already. Stop it, or give "
                "another --port."
            ) from error
        except OverflowError as error:
            raise ValueError(f"--port {port}: give a port from 1 to 65535.") from error


def _check_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"--uds {path}: it exists. Remove it if no server listens there, or give "
                    "another path."
                ) from error
            raise ValueError(
                f"--uds {path}: {error.strerror or error}. Give a path in a folder that exists "
                "and can be written."
            ) from error
    Path(path).unlink()


def _may_be_model(argument: str) -> bool:
    return not argument.startswith("-") and _NUMBER.fullmatch(argument) is None
