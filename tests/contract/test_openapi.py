"""The published description of the API is the generated one, and grows without breaking who relies on it."""

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from api import contract
from api.breaking import breaking
from tests.conftest import UseSettings

OLD: dict[str, Any] = json.loads(contract.FILE.read_text())
Change = Callable[[dict[str, Any]], object]


def operation(description: dict[str, Any], path: str = "/v1/orders", method: str = "post") -> Any:
    """Return an operation of a description, to be changed."""
    return description["paths"][path][method]


def schema(description: dict[str, Any], name: str) -> Any:
    """Return a named schema."""
    return description["components"]["schemas"][name]


def field(description: dict[str, Any], name: str, schema_name: str = "NewOrder") -> Any:
    """Return a field of a named schema."""
    return schema(description, schema_name)["properties"][name]


def parameter(description: dict[str, Any], name: str) -> Any:
    """Return a parameter of the list of orders."""
    return next(each for each in operation(description, method="get")["parameters"] if each["name"] == name)


def changed(change: Change) -> dict[str, Any]:
    """Return the published description with a change."""
    new = deepcopy(OLD)
    change(new)
    assert new != OLD
    return new


def test_the_published_description_is_the_generated_one(house: UseSettings) -> None:
    """`make openapi` writes it; a change that breaks clients has to be wanted."""
    new = contract.generate()
    assert breaking(OLD, new) == []
    assert contract.FILE.read_text() == contract.written(new), "docs/openapi.json is not up to date: make openapi"


def test_every_operation_is_described(house: UseSettings) -> None:
    """By a name of its own, a tag, a summary; its refusals are problem documents."""
    operations = [each for item in OLD["paths"].values() for name, each in item.items() if name != "parameters"]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names)
    assert all(each["tags"] and each["summary"] for each in operations)
    for each in operations:
        for status, answer in each["responses"].items():
            if int(status) >= 400 and each["tags"] != ["probes"]:
                content = contract_content(answer)
                assert list(content) == ["application/problem+json"], (each["operationId"], status)
                assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def contract_content(answer: dict[str, Any]) -> Any:
    """Return the content of an answer, or of the named one that it stands for."""
    name = answer.get("$ref", "").rpartition("/")[2]
    return (OLD["components"]["responses"][name] if name else answer)["content"]


@pytest.mark.parametrize("path", [path for path in OLD["paths"] if not path.startswith(("/v1", "/api"))])
def test_probes_need_no_token(path: str) -> None:
    """A load balancer has none."""
    assert "security" not in OLD["paths"][path]["get"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda new: new["paths"].pop("/v1/orders"), "GET /v1/orders: removed"),
        (lambda new: new["paths"]["/v1/orders"].pop("get"), "GET /v1/orders: removed"),
        (lambda new: operation(new)["responses"].pop("202"), "POST /v1/orders: answer 202 removed"),
        (lambda new: operation(new).update(operationId="other"), "POST /v1/orders: operationId changed"),
        (
            lambda new: operation(new)["responses"]["202"].update(content={"text/plain": {}}),
            "POST /v1/orders: answer 202: application/json removed",
        ),
        (
            lambda new: operation(new)["responses"]["202"]["headers"].pop("Location"),
            "POST /v1/orders: answer 202: header Location removed",
        ),
        (
            lambda new: operation(new)["responses"]["202"]["headers"]["Location"].update(required=False),
            "POST /v1/orders: answer 202: header Location became optional",
        ),
        (
            lambda new: operation(new)["responses"]["202"]["links"].pop("getOrder"),
            "POST /v1/orders: answer 202: link getOrder removed",
        ),
        (lambda new: schema(new, "Order")["properties"].pop("courier"), "field courier removed"),
        (lambda new: schema(new, "Order")["required"].remove("status"), "field status became optional"),
        (lambda new: field(new, "amount_cents", "Order").update(type="string"), ".amount_cents: type changed"),
        (lambda new: field(new, "id", "Order").update(type=["string", "null"]), ".id: type changed"),
        (lambda new: field(new, "ok", "Added").update(enum=["a", "b"]), "further values are answered"),
        (lambda new: schema(new, "NewOrder")["required"].append("note"), "field note became required"),
        (lambda new: schema(new, "NewOrder")["properties"].pop("currency"), "field currency removed"),
        (lambda new: field(new, "currency")["enum"].remove("EUR"), ".currency: fewer values are taken"),
        (lambda new: field(new, "customer_id").update(enum=["me"]), ".customer_id: fewer values are taken"),
        (lambda new: field(new, "customer_id").update(maxLength=64), ".customer_id: maxLength lowered"),
        (lambda new: field(new, "customer_id").update(minLength=2), ".customer_id: minLength raised"),
        (lambda new: field(new, "amount_cents").update(maximum=10), ".amount_cents: maximum lowered"),
        (lambda new: field(new, "customer_id").update(pattern="^a$"), ".customer_id: pattern changed"),
        (lambda new: field(new, "customer_id").update(format="uuid"), ".customer_id: format changed"),
        (lambda new: field(new, "items").update(maxItems=5), ".items: maxItems lowered"),
        (lambda new: field(new, "sku", "Item").update(maxLength=5), ".items[].sku: maxLength lowered"),
        (lambda new: field(new, "amount_cents").update(type="string"), ".amount_cents: type changed"),
        (
            lambda new: operation(new)["parameters"].append({"in": "header", "name": "X", "required": True}),
            "parameter X became required",
        ),
        (lambda new: parameter(new, "page").update(required=True), "parameter page became required"),
        (lambda new: operation(new, method="get")["parameters"].remove(parameter(new, "after")), "after removed"),
        (lambda new: parameter(new, "status")["schema"]["enum"].pop(), "parameter status: fewer values are taken"),
        (lambda new: parameter(new, "page_size")["schema"].update(maximum=100), "page_size: maximum lowered"),
        (
            lambda new: operation(new, "/v1/orders/{order_id}/cancel")["requestBody"].update(required=True),
            "body became required",
        ),
        (lambda new: new["components"]["securitySchemes"].pop("bearerAuth"), "security scheme bearerAuth: removed"),
        (lambda new: operation(new).update(security=[{"bearerAuth": ["ops"]}]), "needs another authorization"),
        (lambda new: operation(new, "/livez", "get").update(security=[{"bearerAuth": []}]), "another authorization"),
    ],
)
def test_what_breaks_a_client_is_refused(change: Change, said: str) -> None:
    """Whatever a client of the published description sends or reads must go on to work; each break is named."""
    old = with_enum()
    new = deepcopy(old)
    change(new)
    assert new != old
    assert any(said in line for line in breaking(old, new)), breaking(old, new)


def with_enum() -> dict[str, Any]:
    """Return the published description with an answer of few values, which it may not have itself."""
    old = deepcopy(OLD)
    old["components"]["schemas"]["Added"] = {"properties": {"ok": {"type": "string", "enum": ["a"]}}}
    operation(old)["responses"]["299"] = {
        "description": "",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Added"}}},
    }
    return old


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new["paths"].update({"/v2/orders": {"get": {"responses": {}}}}),
        lambda new: operation(new)["responses"].update({"418": {"description": "a teapot"}}),
        lambda new: schema(new, "Order")["properties"].update(colour={"type": "string"}),
        lambda new: schema(new, "NewOrder")["properties"].update(note={"type": "string"}),
        lambda new: schema(new, "NewOrder")["required"].remove("customer_id"),
        lambda new: field(new, "currency")["enum"].append("XYZ"),
        lambda new: field(new, "customer_id").update(maxLength=1000),
        lambda new: field(new, "customer_id").pop("pattern"),
        lambda new: field(new, "amount_cents").update(type=["integer", "string"]),
        lambda new: field(new, "courier", "Order").update(type="string"),
        lambda new: operation(new)["parameters"].append({"in": "header", "name": "X", "schema": {"type": "string"}}),
        lambda new: parameter(new, "page").update(description="other words"),
        lambda new: operation(new)["responses"]["202"]["headers"].update(New={"schema": {"type": "string"}}),
        lambda new: operation(new).update(security=[{"bearerAuth": ["orders:write"]}, {"key": []}]),
        lambda new: operation(new).pop("security"),
    ],
)
def test_what_only_adds_is_let_through(change: Change) -> None:
    """Operations, answers, fields, values and parameters that nobody has to know."""
    assert breaking(OLD, changed(change)) == []


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, house: UseSettings) -> Path:
    """A published description that promises more than the code keeps."""
    promised = deepcopy(OLD)
    operation(promised)["responses"]["299"] = {"description": "promised"}
    file = tmp_path / "openapi.json"
    file.write_text(contract.written(promised))
    monkeypatch.setattr(contract, "FILE", file)
    return file


def test_a_breaking_change_is_written_only_when_it_is_wanted(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and one line for each break, the file untouched; ``--breaking`` writes it."""
    before = published.read_text()
    monkeypatch.setattr(sys, "argv", ["contract"])
    assert contract.main() == 1
    assert capsys.readouterr().err.splitlines()[0] == "POST /v1/orders: answer 299 removed"
    assert published.read_text() == before
    monkeypatch.setattr(sys, "argv", ["contract", "--breaking"])
    assert contract.main() == 0
    assert json.loads(published.read_text()) == OLD
