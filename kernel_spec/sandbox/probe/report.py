"""The probe's report: one line for each layer, the proofs from inside, and the tier; as values, text and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kernel_spec.sandbox.policy.plan import LAYERS, NETWORK_POLICY


class State(StrEnum):
    """Whether a layer is in use on this host."""

    ON = "on"
    DEGRADED = "degraded"
    OFF = "off"


class Tier(StrEnum):
    """The level of isolation, see `tiers.tier_of`."""

    STRONG = "A"
    STANDARD = "B"
    REDUCED = "C"
    NONE = "D"

    @property
    def word(self) -> str:
        """The tier in a word."""
        return {"A": "strong", "B": "standard", "C": "reduced", "D": "none"}[self.value]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer.

    Attributes
    ----------
    why : str
        The reason if it is degraded or off, else a detail such as the Landlock ABI, or empty.
    remedy : str
        How to turn it on; empty if it is on.
    promise : str
        The guarantee of the layer.
    """

    layer: str
    state: State
    promise: str
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """An attempt from inside the finished sandbox; `held` if it was refused or worked as promised."""

    name: str
    held: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report.

    Attributes
    ----------
    problem : str
        Why another report may be better, as on a host that is too busy; empty if this one will be the same.
    """

    tier: Tier
    layers: tuple[LayerReport, ...]
    proofs: tuple[Proof, ...]
    allow_network: bool
    seconds: float
    problem: str = ""

    @property
    def active(self) -> frozenset[str]:
        """Names of the layers that are not off, for `SandboxPlan.layers`."""
        return frozenset(layer.layer for layer in self.layers if layer.state is not State.OFF)

    def of(self, layer: str) -> LayerReport:
        """Return the line of one layer.

        Raises
        ------
        KeyError
            There is no such layer.
        """
        for line in self.layers:
            if line.layer == layer:
                return line
        raise KeyError(layer)

    def to_json(self) -> dict[str, object]:
        """Return the report as a JSON object; it holds no secret and no path of a job."""
        return {
            "tier": self.tier.value,
            "tier_name": self.tier.word,
            "allow_network": self.allow_network,
            "seconds": round(self.seconds, 4),
            "problem": self.problem,
            "layers": [
                {
                    "layer": line.layer,
                    "state": line.state.value,
                    "promise": line.promise,
                    "why": line.why,
                    "remedy": line.remedy,
                }
                for line in self.layers
            ],
            "proofs": [{"name": p.name, "held": p.held, "detail": p.detail} for p in self.proofs],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """Return the report in an object made by `to_json`, from one of our own processes.

        Raises
        ------
        KeyError, ValueError
            The object was not made by `to_json`.
        """
        layers = tuple(LayerReport(**{**line, "state": State(line["state"])}) for line in value["layers"])
        return cls(
            tier=Tier(value["tier"]),
            layers=layers,
            proofs=tuple(Proof(**proof) for proof in value["proofs"]),
            allow_network=bool(value["allow_network"]),
            seconds=float(value["seconds"]),
            problem=str(value["problem"]),
        )

    def render(self, *, width: int = 110) -> str:
        """Return the report as a table of text."""
        name_width = max(map(len, LAYERS))
        indent = " " * (name_width + 12)
        lines = [f"Sandbox tier {self.tier.value} ({self.tier.word})", ""]
        for line in self.layers:
            head = f"{line.layer:<{name_width}}  {line.state.value:<8}  "
            lines += textwrap.wrap(line.promise, width, initial_indent=head, subsequent_indent=indent)
            if line.why:
                lines += textwrap.wrap(line.why, width, initial_indent=indent, subsequent_indent=indent)
        lines += ["", "Tried from inside:"]
        proof_width = max((len(proof.name) for proof in self.proofs), default=0) + 2
        for proof in self.proofs:
            verdict = "holds" if proof.held else "DOES NOT HOLD"
            detail = f" ({proof.detail})" if proof.detail else ""
            lines.append(f"  {proof.name:<{proof_width}}{verdict}{detail}")
        for remedy, layers in self._remedies().items():
            text = f"To turn on {', '.join(layers)}: {remedy}."
            lines += ["", *textwrap.wrap(text, width)]
        if self.allow_network:
            reach = "but not this machine" if NETWORK_POLICY in self.active else "this machine included"
            lines += ["", f"Jobs have the network, {reach}: allow_network is set."]
        return "\n".join(lines) + "\n"

    def _remedies(self) -> dict[str, list[str]]:
        """Return each remedy with the layers that it would turn on."""
        found: dict[str, list[str]] = {}
        for line in self.layers:
            if line.remedy:
                found.setdefault(line.remedy, []).append(line.layer)
        return found
