"""What the files of the fleet in containers say about its variables and secrets agrees with each other and the code."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from shared.contracts.queues import AUDIT_STREAM, EVENTS_QUEUE, Queue
from shared.settings import SERVICES
from tests.support import variables_of_the_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / ".env.example").read_text()
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DEVELOPMENT = (ROOT / "docker-compose.dev.yml").read_text()
NOT_IN_CONTAINERS = {"AUTH_DISABLED"}  # it is refused off the loopback


def test_the_example_tells_every_variable_that_docker_compose_does_not_set() -> None:
    """Each variable of the code is in one of the two places, and the example has no other but docker-compose's own."""
    told = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    asked = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE + DEVELOPMENT))
    fixed = {name.removesuffix("_FILE") for name in re.findall(r"^ +([A-Z_]+): ", COMPOSE + DEVELOPMENT, re.MULTILINE)}
    variables = set(variables_of_the_settings())
    assert told == (variables - fixed - NOT_IN_CONTAINERS) | asked


def test_the_example_shows_each_default() -> None:
    """A line that is commented out says what happens without it; docker-compose's own choices differ knowingly."""
    shown = dict(re.findall(r"^#([A-Z_]+)=(.+)$", EXAMPLE, re.MULTILINE))
    chosen = {"LOG_FORMAT", "START_TIMEOUT"}
    defaults = {name: str(default) for name, default in variables_of_the_settings().items() if default is not None}
    assert {n: v for n, v in shown.items() if n in defaults and n not in chosen} == {
        n: v for n, v in defaults.items() if n in shown and n not in chosen
    }
    in_compose = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]+)\}", COMPOSE + DEVELOPMENT))
    assert {name: shown[name] for name in in_compose} == in_compose


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of secrets, as an operator makes it."""
    folder = tmp_path_factory.mktemp("fleet") / "secrets"
    make(folder)
    return folder


def make(folder: Path) -> None:
    """Run the script."""
    environment = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(folder)}
    subprocess.run([ROOT / "deploy" / "secrets.sh"], env=environment, check=True)


def test_every_secret_that_docker_compose_names_is_made(secrets: Path) -> None:
    """None is missing, none is made for nobody; the folder is its owner's alone."""
    named = set(re.findall(r"^  (\w+): \{file: ", COMPOSE, re.MULTILINE))
    assert {path.name for path in secrets.iterdir()} == named
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert all(path.read_text().strip() for path in secrets.iterdir())


def test_no_secret_is_like_another(secrets: Path) -> None:
    """Each password is random; what servers read is made of the same ones."""
    passwords = re.findall(r"//\w+:([0-9a-f]{48})@", "".join(path.read_text() for path in secrets.glob("*_url")))
    assert len(passwords) == len(set(passwords)) == 1 + len(SERVICES) + len(users())


def test_a_secret_that_is_there_stays(secrets: Path) -> None:
    """The script may be run again, and makes only what is missing."""
    before = {path.name: path.read_text() for path in secrets.iterdir() if path.name != "rabbitmq_definitions"}
    (secrets / "jwt_secret").unlink()
    make(secrets)
    after = {path.name: path.read_text() for path in secrets.iterdir() if path.name != "rabbitmq_definitions"}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"jwt_secret"}


def test_every_user_of_the_broker_gets_a_hash(secrets: Path) -> None:
    """And no placeholder is left."""
    made = json.loads((secrets / "rabbitmq_definitions").read_text())
    hashes = [user["password_hash"] for user in made["users"]]
    assert len(set(hashes)) == len(hashes)
    assert not [each for each in hashes if "@" in each or len(each) != 48]


def test_services_read_their_own_queue_and_declare_none() -> None:
    """The rights, as data: who may take messages from where, and who may make or delete queues of the topology."""
    readers = {
        name: {each["user"] for each in rights() if re.search(each["read"], name)} - {"setup", "operator"}
        for name in (*Queue, EVENTS_QUEUE, AUDIT_STREAM)
    }
    assert readers == {**{name: {str(name)} for name in Queue}, EVENTS_QUEUE: {"recorder"}, AUDIT_STREAM: set()}
    for name in (*Queue, EVENTS_QUEUE, AUDIT_STREAM, "waybill.tasks", "waybill.events", "celery_delayed_0"):
        assert {each["user"] for each in rights() if re.search(each["configure"], name)} == {"setup", "operator"}


def test_only_the_operator_sends_remote_control() -> None:
    """Nobody else may write to the exchange of the control messages; Flower may write to nothing but its own queue."""
    assert {each["user"] for each in rights() if re.search(each["write"], "celery.pidbox")} == {"setup", "operator"}
    flower = next(each for each in rights() if each["user"] == "flower")
    assert not [
        name for name in ("waybill.tasks", "waybill.events", "celeryev", "") if re.search(flower["write"], name)
    ]


def definitions() -> dict[str, list[dict[str, str]]]:
    """The template of the broker's users and rights."""
    return dict(json.loads((ROOT / "deploy" / "rabbitmq" / "definitions.json").read_text()))


def rights() -> list[dict[str, str]]:
    """Who may do what."""
    return definitions()["permissions"]


def users() -> list[str]:
    """Who there is."""
    return [user["name"] for user in definitions()["users"]]
