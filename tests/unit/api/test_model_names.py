"""Model names with a mode behind a colon."""

from __future__ import annotations

import json

import pytest

from dlm_sglang.api.model_names import resolve_model, split_name, virtual_card, with_virtual_cards
from dlm_sglang.errors import RequestError
from dlm_sglang.param_table import MODE_BY_NAME, GenerationMode

SERVED = ("nld", "org/nld:8b", "nld:diffusion")


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize("suffix", MODE_BY_NAME)
def test_a_virtual_name_is_the_served_one_and_a_mode(served: str, suffix: str) -> None:
    body = resolve_model({"model": f"{served}:{suffix}", "seed": 1}, served)
    assert body == {"model": served, "generation_mode": MODE_BY_NAME[suffix].value, "seed": 1}


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": 3}, {"model": "other:diffusion"}, {"model": "nl"}])
def test_other_names_stay_as_they_are(served: str, body: dict[str, object]) -> None:
    assert resolve_model(body, served) == body


@pytest.mark.parametrize("served", SERVED)
def test_the_served_name_itself_sets_no_mode(served: str) -> None:
    assert split_name(served, served) == (served, None)


@pytest.mark.parametrize("name", ["nld:", "nld:fast", "nld:Diffusion", "nld:diffusion:x"])
def test_an_unknown_mode_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_model({"model": name}, "nld")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "self_speculation" in caught.value.message


@pytest.mark.parametrize("place", ["top", "custom"])
def test_another_mode_beside_the_name_is_refused_and_the_same_is_not(place: str) -> None:
    def body(mode: str) -> dict[str, object]:
        fields: dict[str, object] = {"generation_mode": mode}
        return {"model": "nld:ar", **(fields if place == "top" else {"custom_params": fields})}

    with pytest.raises(RequestError) as caught:
        resolve_model(body("diffusion"), "nld")
    assert (caught.value.param, caught.value.code) == ("generation_mode", "parameter-conflict")
    assert resolve_model(body("autoregressive"), "nld") == {**body("autoregressive"), "model": "nld"}


def test_the_listing_holds_a_card_for_each_mode_behind_the_models_own() -> None:
    cards = [{"id": "nld", "parent": None, "max_model_len": 9}, {"id": "adapter"}]
    listed = json.loads(with_virtual_cards(json.dumps({"object": "list", "data": cards}).encode(), "nld"))
    assert [card["id"] for card in listed["data"]] == ["nld", *(f"nld:{mode}" for mode in GenerationMode), "adapter"]
    assert listed["data"][1]["parent"] == "nld"
    assert listed["data"][1]["max_model_len"] == 9


def test_a_single_card_has_the_name_that_was_asked_for() -> None:
    card = json.dumps({"id": "nld", "root": "nld"}).encode()
    assert json.loads(virtual_card(card, "nld:ar", "nld")) == {"id": "nld:ar", "root": "nld", "parent": "nld"}
