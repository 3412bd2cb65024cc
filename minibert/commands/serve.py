"""minibert serve: a model as a web service."""

from __future__ import annotations

import argparse
import ipaddress
import math
from typing import Any

from minibert.commands.options import add_model_options, at_least, examples, file_name
from minibert.errors import BackendError
from minibert.progress import notice


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    serve = commands.add_parser(
        "serve",
        help="answer questions over HTTP",
        description="Serve a model over HTTP, with the contract of Hugging Face's inference "
        "services for question answering, and a page to try it in a browser. Requests that come "
        "at the same time share batches. Ctrl-C or SIGTERM ends it when all that was taken is "
        "answered. If the variable MINIBERT_API_KEY is set, or a file named, requests need that "
        "key: 'Authorization: Bearer KEY'.",
        **examples(
            "minibert serve --model my_model --port 8000",
            "minibert serve --host 0.0.0.0 --port 80 --api-key-file key.txt",
        ),
    )
    serve.set_defaults(run=command_serve)
    add_model_options(serve)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 for all of this machine (default: 127.0.0.1, which "
        "only this machine can reach)",
    )
    serve.add_argument(
        "--port", type=port, default=8000, help="0 for one that is free (default: 8000)"
    )
    serve.add_argument(
        "--api-key-file",
        type=file_name,
        metavar="FILE",
        help="read the API key from there, not from MINIBERT_API_KEY",
    )
    serve.add_argument(
        "--queue",
        type=at_least(1),
        metavar="N",
        help="questions that may be under way; more are told to come again (default: 256)",
    )
    serve.add_argument(
        "--max-connections",
        type=at_least(1),
        metavar="N",
        help="that may be open (default: 1000, or what this process may open)",
    )
    serve.add_argument(
        "--max-characters",
        type=at_least(1),
        metavar="N",
        help="of one request's questions and texts (default: 200000)",
    )
    serve.add_argument(
        "--max-texts",
        type=at_least(1),
        metavar="N",
        help="questions or texts of one request (default: 64)",
    )
    serve.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="that an answer may take before its request is given up (default: 30)",
    )
    serve.add_argument(
        "--no-access-log", action="store_true", help="write no line for each request"
    )


def port(text: str) -> int:
    """An argparse type: a port of TCP."""
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {value}")
    return value


def seconds(text: str) -> float:
    """An argparse type: a time that ends."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def is_own(host: str) -> bool:
    """Whether only this machine reaches an address.

    Example:
        >>> [is_own(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
        [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command_serve(args: argparse.Namespace) -> None:
    """Run `minibert serve`.

    Raises:
        MinibertError: the model cannot be loaded, the port is taken, or what serves is missing.
    """
    try:
        from minibert.serve.app import create_app
        from minibert.serve.server import address, listen, make_server, most_connections
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise BackendError(
            f"minibert serve needs {error.name}, which is not installed. Install minibert with its "
            "extra 'serve': pip install 'minibert-qa[serve]'"
        ) from None
    from minibert.answering import QuestionAnswerer
    from minibert.serve.journal import AccessLog
    from minibert.serve.keys import find_key
    from minibert.serve.service import Service
    from minibert.serve.settings import Settings

    chosen = {
        "queue": args.queue,
        "max_connections": args.max_connections,
        "max_characters": args.max_characters,
        "max_texts": args.max_texts,
        "answer_seconds": args.timeout,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    usual = Settings(**given)
    most = most_connections(usual.max_connections)
    if args.max_connections is not None and most < args.max_connections:
        notice(f"minibert: {most} connections at most: this process may not open more files")
    settings = Settings(**{**given, "max_connections": most})
    key = find_key(args.api_key_file)
    with listen(args.host, args.port) as opened:
        qa = QuestionAnswerer(
            args.model,
            revision=args.revision,
            device=args.device or "auto",
            dtype=args.dtype,
            num_threads=args.threads,
        )
        qa.answer("Who?", "Ann.")  # compiles the kernels, and shows that the model runs
        service = Service(qa.model, settings)
        log = None if args.no_access_log else AccessLog()
        app = create_app(service, key=key, log=log.add if log else None)
        if key is None and not is_own(args.host):
            notice("minibert: whoever reaches this address may ask; MINIBERT_API_KEY sets a key")
        notice(f"minibert: serving {qa.model.name} at {address(opened)}")
        make_server(app, service).run(sockets=[opened])
        if log is not None:
            log.close()
        notice("minibert: stopped")
