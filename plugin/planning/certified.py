"""
The cheapest plan of a profile's family that is certified, and that a call can run.

Knows families, certificates and which plans are at hand; knows no budget and no cost.
"""

from __future__ import annotations

from collections.abc import Mapping

from langchain_pareto.errors import CertificateRefused, SettingError
from langchain_pareto.planning.catalogue import VOTES, Option
from langchain_pareto.planning.certificates import Guarantee, certify
from langchain_pareto.planning.profile import Profile


def cheapest_certified(
    profile: Profile, fits: Mapping[int, bool], guarantee: Guarantee
) -> tuple[int, str]:
    """Its place among the profile's options, and why it may be taken; the reference itself needs no certificate.

    `fits` names the places whose models the call has, and whether one sample fits its memory. Raises CertificateRefused, and
    SettingError where not even the reference can run.
    """
    family = profile.family
    if family is None:
        msg = f"the profile {profile.name} has no plans to certify"
        raise CertificateRefused(
            msg,
            reason="family",
            questions=profile.questions,
            hint=f"Calibrate with at least {min(VOTES)} samples of each question: the reference is a vote.",
        )
    losses, asked = family.losses(guarantee.kind), guarantee.model_dump()
    passed = family.options[: certify(losses, **asked).plan + 1]
    rows = [row for row, place in enumerate(passed) if fits.get(place)]
    if rows:  # those before the last have passed too
        row = max(rows)
        certificate = certify(losses[: row + 1], **asked)
        option = profile.options[passed[row]]
        return passed[row], certificate.explain().replace(f"plan {row}", str(option))
    reference = profile.options[family.reference]
    _check(reference, fits.get(family.reference))
    told = f"no cheaper plan that is certified can run here: {reference} is the reference, which needs no certificate"
    return family.reference, told


def _check(reference: Option, fits: bool | None) -> None:
    if fits is None:
        msg = f"no certified plan can run here, and their reference, {reference}, needs models that this call has not"
        raise SettingError(msg, hint=f"Name {reference.players} in models=.")
    if not fits:
        msg = f"no certified plan fits into the memory, nor does their reference, {reference}"
        raise SettingError(msg, hint="Give the budget more memory, or leave out the guarantee.")
