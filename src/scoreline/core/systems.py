"""The 48 published systems: one row each, and what is known about the state of each.

The rows are written by hand; the facts (which checks are tested, what the claim measured, whether the docs page holds)
are gathered from the tree by `make facts` into `scoreline/facts.json`, which ships with the package. Reading either
imports neither torch nor the systems themselves.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline.core.errors import ArtefactError, unknown_name
from scoreline.core.files import read_json

__all__ = ["FACTS", "METRIC_CHECKS", "SYSTEMS", "System", "facts", "source_hash", "sources", "system"]

FACTS = Path(__file__).resolve().parents[1] / "facts.json"

# The metrics that all systems share have checks of their own; tests mark them as system 0.
METRIC_CHECKS = 8


@dataclass(frozen=True)
class System:
    """One published system.

    Args:
        id: two digits, "01" to "48".
        name: the name the field uses.
        slug: names the docs page `docs/systems/<id>-<slug>.md` and the claim `scoreline.claims.<slug>`.
        arxiv: identifier of the paper.
        checks: how many numbered checks its tests must hold.
        module: import path of the file that a reader of the paper should open first.
        parts: further modules whose source the measured claim rests on.
    """

    id: str
    name: str
    slug: str
    arxiv: str
    checks: int
    module: str
    parts: tuple[str, ...] = ()

    @property
    def paper(self) -> str:
        return f"arXiv:{self.arxiv}"

    @property
    def page(self) -> str:
        return f"docs/systems/{self.id}-{self.slug}.md"

    @property
    def claim(self) -> str:
        return f"scoreline.claims.{self.slug.replace('-', '_')}"


SYSTEMS = (
    System("01", "EAGAN", "eagan", "2111.15097", 10, "scoreline.search.eagan"),
    System("02", "Abs-Grad-SAM editing", "grad-sam-editing", "2408.16232", 8, "scoreline.adapt.grad_sam"),
    System("03", "VAR", "var", "2404.02905", 10, "scoreline.generators.var"),
    System("04", "SupCon text-to-image GAN", "supcon-t2i", "2412.03957", 9, "scoreline.generators.gan.supcon"),
    System(
        "05",
        "CopyScope",
        "copyscope",
        "2311.12847",
        10,
        "scoreline.explain.copyscope",
        ("scoreline.explain.shapley", "scoreline.explain.coalitions"),
    ),
    System("06", "SIMS", "sims", "2408.16333", 9, "scoreline.adapt.sims"),
    System(
        "07",
        "AutoDiffusion",
        "autodiffusion",
        "2309.10438",
        9,
        "scoreline.search.autodiffusion",
        ("scoreline.search.candidates", "scoreline.search.objective", "scoreline.guidance.planned"),
    ),
    System(
        "08",
        "Denoising MCMC",
        "denoising-mcmc",
        "2209.14593",
        9,
        "scoreline.samplers.denoising_mcmc",
        (
            "scoreline.samplers.chains",
            "scoreline.samplers.chain_runs",
            "scoreline.samplers.level_prediction",
            "scoreline.nn.level_classifier",
        ),
    ),
    System(
        "09",
        "Enhanced DDPM",
        "enhanced-ddpm",
        "2412.14422",
        10,
        "scoreline.samplers.ddpm",
        ("scoreline.samplers.ddim", "scoreline.guidance.extrapolate"),
    ),
    System(
        "10",
        "SCott",
        "scott",
        "2403.01505",
        10,
        "scoreline.fewstep.scott",
        ("scoreline.fewstep.guided", "scoreline.fewstep.adversarial", "scoreline.samplers.er_sde"),
    ),
    System(
        "11",
        "SAR-to-optical distillation",
        "sar-to-optical",
        "2407.06095",
        10,
        "scoreline.fewstep.sar_to_optical",
        (
            "scoreline.fewstep.adversarial",
            "scoreline.fewstep.maps",
            "scoreline.nn.discriminator",
            "scoreline.data.paired",
            "scoreline.diffusion.joint_kernel",
        ),
    ),
    System("12", "DEIS", "deis", "2204.13902", 10, "scoreline.samplers.deis", ("scoreline.samplers.exponential",)),
    System(
        "13", "InstaFlow", "instaflow", "2309.06380", 10, "scoreline.fewstep.instaflow", ("scoreline.fewstep.flows",)
    ),
    System(
        "14",
        "iCT",
        "ict",
        "2310.14189",
        9,
        "scoreline.fewstep.ict",
        (
            "scoreline.fewstep.consistency",
            "scoreline.fewstep.consistency_models",
            "scoreline.fewstep.curricula",
            "scoreline.fewstep.distances",
            "scoreline.fewstep.maps",
            "scoreline.fewstep.teachers",
            "scoreline.samplers.jumps",
        ),
    ),
    System(
        "15",
        "Score SDE",
        "score-sde",
        "2011.13456",
        10,
        "scoreline.samplers.score_sde",
        (
            "scoreline.diffusion.sde",
            "scoreline.diffusion.dormand_prince",
            "scoreline.diffusion.likelihood",
            "scoreline.guidance.inpainting",
        ),
    ),
    System("16", "GMem", "gmem", "2412.08781", 10, "scoreline.adapt.gmem"),
    System(
        "17",
        "Guided distillation",
        "guided-distillation",
        "2210.03142",
        10,
        "scoreline.fewstep.guided_distillation",
        (
            "scoreline.fewstep.halving",
            "scoreline.fewstep.progressive",
            "scoreline.fewstep.guidance_students",
            "scoreline.fewstep.guided",
            "scoreline.samplers.double_step",
        ),
    ),
    System(
        "18",
        "USF and S^3",
        "usf",
        "2312.07243",
        10,
        "scoreline.search.usf",
        (
            "scoreline.samplers.usf",
            "scoreline.samplers.solver_schedule",
            "scoreline.samplers.solver_step",
            "scoreline.samplers.known_solvers",
            "scoreline.search.solver_space",
            "scoreline.search.schedule_predictor",
        ),
    ),
    System(
        "19",
        "2-rectified flow++",
        "rfpp",
        "2405.20320",
        10,
        "scoreline.fewstep.rfpp",
        ("scoreline.fewstep.flows", "scoreline.diffusion.levels", "scoreline.samplers.straight"),
    ),
    System(
        "20",
        "SIM",
        "sim",
        "2410.16794",
        9,
        "scoreline.fewstep.sim",
        (
            "scoreline.fewstep.sid",
            "scoreline.fewstep.through",
            "scoreline.fewstep.matching",
            "scoreline.fewstep.mean_map",
        ),
    ),
    System(
        "21",
        "f-distill",
        "f-distill",
        "2502.15681",
        9,
        "scoreline.fewstep.f_distill",
        ("scoreline.fewstep.matching", "scoreline.fewstep.mean_map", "scoreline.fewstep.adversarial"),
    ),
    System(
        "22",
        "Skip-tuning",
        "skip-tuning",
        "2402.15170",
        10,
        "scoreline.guidance.skip_tuning",
        ("scoreline.search.skip_sweep",),
    ),
    System("23", "DiffFit", "difffit", "2304.06648", 9, "scoreline.adapt.difffit"),
    System("24", "FP8 versus INT8", "fp8-int8", "2303.17951", 10, "scoreline.adapt.quantize"),
    System(
        "25",
        "DPM-Solver-v3",
        "dpm-solver-v3",
        "2310.13268",
        10,
        "scoreline.samplers.dpm_solver_v3",
        ("scoreline.samplers.model_statistics", "scoreline.samplers.statistics_estimation"),
    ),
    System(
        "26",
        "Time-Shift Sampler",
        "time-shift",
        "2305.15583",
        10,
        "scoreline.guidance.time_shift",
        ("scoreline.guidance.variance_rule", "scoreline.guidance.epsilon_scaling"),
    ),
    System(
        "27",
        "Metrics under imbalance",
        "imbalanced-metrics",
        "2208.11904",
        10,
        "scoreline.metrics.imbalance",
        ("scoreline.metrics.label_noise", "scoreline.metrics.threshold_choice", "scoreline.metrics.binary_curves"),
    ),
    System(
        "28",
        "AUPIMO",
        "aupimo",
        "2401.01984",
        10,
        "scoreline.metrics.aupimo",
        ("scoreline.metrics.pixel_curves", "scoreline.metrics.binary_curves"),
    ),
    System("29", "Inception-v4", "inception-v4", "1602.07261", 8, "scoreline.nn.inception_v4"),
    System(
        "30",
        "MSD",
        "msd",
        "2410.23274",
        8,
        "scoreline.fewstep.msd",
        (
            "scoreline.fewstep.class_shares",
            "scoreline.fewstep.teacher_matching",
            "scoreline.fewstep.dmd2",
            "scoreline.fewstep.matching",
            "scoreline.fewstep.mean_map",
        ),
    ),
    System("31", "SlimFlow", "slimflow", "2407.12718", 10, "scoreline.fewstep.slimflow", ("scoreline.fewstep.flows",)),
    System(
        "32",
        "DMD2",
        "dmd2",
        "2405.14867",
        10,
        "scoreline.fewstep.dmd2",
        (
            "scoreline.fewstep.matching",
            "scoreline.fewstep.mean_map",
            "scoreline.fewstep.adversarial",
            "scoreline.nn.discriminator",
        ),
    ),
    System("33", "AbeT", "abet", "2401.12129", 9, "scoreline.detect.abet"),
    System(
        "34",
        "CTM",
        "ctm",
        "2310.02279",
        9,
        "scoreline.fewstep.ctm",
        ("scoreline.fewstep.trajectory", "scoreline.fewstep.maps", "scoreline.samplers.jumps"),
    ),
    System("35", "EPS-AD", "eps-ad", "2305.16035", 10, "scoreline.detect.eps_ad"),
    System(
        "36",
        "SFD",
        "sfd",
        "2409.11219",
        9,
        "scoreline.fewstep.sfd",
        ("scoreline.fewstep.matching", "scoreline.fewstep.mean_map", "scoreline.fewstep.sid"),
    ),
    System("37", "Stage of decay", "stage-of-decay", "2408.10414", 9, "scoreline.classify.stage_of_decay"),
    System("38", "Hessian alignment", "hessian-alignment", "2308.11778", 10, "scoreline.classify.hessian_alignment"),
    System(
        "39", "Multi-metrics defence", "multi-metrics-fl", "2303.06601", 9, "scoreline.detect.federated.multi_metrics"
    ),
    System("40", "RveRNet", "rvernet", "2407.08257", 9, "scoreline.classify.rvernet"),
    System("41", "IVD-Net", "ivd-net", "1811.08305", 9, "scoreline.nn.ivd_net"),
    System("42", "InceptionNeXt", "inceptionnext", "2303.16900", 9, "scoreline.nn.inceptionnext"),
    System("43", "Data diet", "data-diet", "2107.07075", 9, "scoreline.classify.data_diet"),
    System("44", "Retinal trio", "retinal-trio", "2405.18449", 9, "scoreline.classify.retinal_trio"),
    System("45", "PALM", "palm", "2402.02653", 10, "scoreline.detect.palm"),
    System("46", "Hyp-OC", "hyp-oc", "2404.14406", 10, "scoreline.detect.hyp_oc"),
    System("47", "DiffROAR", "diffroar", "2102.12781", 9, "scoreline.explain.diffroar"),
    System("48", "iFormer", "iformer", "2205.12956", 9, "scoreline.nn.iformer"),
)


def system(id: str | int) -> System:
    """The row of a system, by number or slug.

    Raises:
        InputError: there is no such system.

    >>> system(9).name, system("deis").id
    ('Enhanced DDPM', '12')
    """
    wanted = str(id)
    wanted = wanted.zfill(2) if wanted.isdigit() else wanted
    for row in SYSTEMS:
        if wanted in (row.id, row.slug):
            return row
    raise unknown_name("system", wanted, [name for row in SYSTEMS for name in (row.id, row.slug)])


def facts() -> dict[str, Any]:
    """What `make facts` gathered: {"metrics": {...}, "systems": [one record a system, in order]}.

    A record has id, name, paper, module, tests, checks, claim, page, state ("works", "stale", "incomplete" or
    "planned") and missing, the reasons why it does not work yet.

    Raises:
        ArtefactError: the file is missing or does not belong to this version's table of systems.
    """
    found = read_json(FACTS)
    ids = [record.get("id") for record in found.get("systems", [])] if isinstance(found, dict) else []
    if ids != [row.id for row in SYSTEMS]:
        raise ArtefactError(str(FACTS), None, "does not list the systems of this version; run `make facts`")
    return found


def sources(module: str) -> list[Path]:
    """The files of a module, or of a package with all its modules; empty when there is none yet."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return []
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def source_hash(modules: Sequence[str]) -> str | None:
    """Fingerprint of what some modules do: SHA-256 over their syntax trees, docstrings and comments left out.

    A claim measured on one state of the source stays valid while only words and layout change. The tree is written out
    by hand, without empty fields, because `ast.dump` differs between Python versions.

    Returns:
        64 hexadecimal digits, or None when one of the modules does not exist.
    """
    digest = hashlib.sha256()
    for module in modules:
        files = sources(module)
        if not files:
            return None
        for file in files:
            digest.update(f"{module}/{file.name}\n{_written(ast.parse(file.read_bytes()))}\n".encode())
    return digest.hexdigest()


def _written(node: Any) -> str:
    if isinstance(node, list):
        return "[" + ",".join(map(_written, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        if value is not None and value != [] and name != "type_comment":
            fields.append(f"{name}={_written(value)}")
    return f"{type(node).__name__}({','.join(fields)})"
