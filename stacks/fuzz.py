"""``make fuzz``: the API's description attacks the API, on the real stack.

Schemathesis sends what the description allows and what it forbids, and follows its links from order to order; each
answer must be one that is described. Exit code 0 only when it finds nothing.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jwt

from simulators.webhooks import new_secret
from stacks import fuzz_hooks
from stacks.local import ROOT, UNLIMITED, LocalStack

_HOURS = 3600 * 12  # seconds that the token holds
_ISSUER = "https://fuzz.example"
_MANY = 350  # test cases for each operation and phase: more than 5,000 requests
_NEEDED = ("api", "psp", "payments", "delivery", "notifications", "orders", "recorder")


class Attack:
    """One attack: a key, a token by it, and what to run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._secret, self._webhook_secret = secrets.token_hex(32), new_secret()
        #: What the API must be started with. Who sends thousands of orders fills the backlog, too.
        self.variables = {
            **UNLIMITED,
            "AUTH_DISABLED": "0",
            "JWT_SECRET": self._secret,
            "JWT_ISSUER": _ISSUER,
            "ADMISSION_LIMIT": "1000000",
            "PAYMENTS_WEBHOOK_SECRET": self._webhook_secret,
            "DELIVERY_WEBHOOK_SECRET": self._webhook_secret,
        }

    def run(self, url: str, examples: int, seed: int) -> subprocess.CompletedProcess[str]:
        """Attack the API at ``url``; the output names each finding, with the request that shows it again."""
        program = shutil.which("schemathesis", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        command = [
            *(program or "schemathesis", "--config-file", str(ROOT / "stacks" / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--max-examples", str(examples), "--seed", str(seed)),
            *("--continue-on-failure", "--no-color"),
        ]
        ours = {"FUZZ_TOKEN": self._token(), fuzz_hooks.SECRET: self._webhook_secret, "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **ours}
        # in a folder of its own: it keeps what it has found
        return subprocess.run(  # noqa: S603 - fixed
            command,
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _token(self) -> str:
        claims = {
            "sub": "fuzz",
            "aud": "waybill",
            "iss": _ISSUER,
            "exp": int(time.time()) + _HOURS,
            "scope": "orders:read orders:write",
        }
        return jwt.encode(claims, self._secret, "HS256")


def main() -> int:
    """Start the stack, attack it, say what was found."""
    parser = argparse.ArgumentParser(prog="python -m stacks.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=_MANY, help="test cases for each operation and phase")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same seed, the same requests")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        attack = Attack(Path(folder))
        stack = LocalStack(Path(folder), durable=False, extra=attack.variables)
        try:
            stack.start_servers()
            stack.prepare_databases()
            stack.start_app(_NEEDED)
            done = attack.run(stack.api_url, arguments.examples, arguments.seed)
        finally:
            stack.stop()
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
