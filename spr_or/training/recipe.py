"""Recipes: a training run written down as TOML, checked before anything is computed.

Every key has a type and a range, and an unknown key is an error that names the nearest valid one.
A network is named by its import path ``"package.module:function"``, so a user's own works exactly
like those in ``models``; the current directory is searched first.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import nn

from spr_or.pruning.lam_words import share_of_max
from spr_or.training.method import SPR_ITSELF, MethodKeys, find_method
from spr_or.utils.import_path import load_object
from spr_or.utils.shipped import find_shipped


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the file, the key and the way out."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1, and a recipe with `epochs = true` means something else."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        inside = list(value) if isinstance(value, list | tuple) else []
        inside += list(value.values()) if isinstance(value, dict) else []
        if {int, float} & kinds and bool not in kinds:
            for one in [value, *inside]:
                if isinstance(one, bool):
                    raise ValueError(f"must be a number, not {str(one).lower()}")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a type hint is made of."""
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


class DataRecipe(_Section):
    """[data]: which images, how they are prepared, and where they are kept."""

    source: str = "digits"  # "digits", a folder of Parquet files, or a Hub id "owner/name"
    name: str = ""  # name of the data set in reports; the source if empty
    revision: str | None = None  # branch, tag or commit of a Hub id
    train_split: str = "train"  # name of the training split
    eval_split: str | None = None  # None: valid, validation, val or test, whichever is there first
    # Use this many training images: a random subset, the same in every run; of a streamed set, the
    # first rows of its files. None: all.
    train_rows: int | None = Field(default=None, ge=1)
    eval_rows: int | None = Field(default=None, ge=1)  # the same for the evaluation images
    # This share of the training images is never trained on. Epochs are then judged by these images, so
    # settings can be chosen by them, and the evaluation images are scored at the end of a phase only.
    held_out: float = Field(default=0.0, ge=0, le=0.5)
    size: int | None = Field(default=None, ge=1)  # side in pixels; None: as the images are
    crop: int = Field(default=0, ge=0)  # pad by so many pixels, then crop at random
    flip: bool = False  # mirror images at random, half of them
    # Set a square of so many pixels' side to the mean, at a random place of each training image.
    cutout: int = Field(default=0, ge=0)
    random_resized_crop: bool = False  # for streamed sets: a random window, scaled to `size`
    mean: tuple[float, ...] | None = None  # mean of each channel, in [0, 1]; None: measured
    # Standard deviation of each channel.
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    batch_size: int = Field(default=128, ge=1)  # images in a batch, over all processes
    eval_batch_size: int = Field(default=512, ge=1)  # images scored at a time
    # Where images are kept: on the device, or streamed from files; auto: on the device if they fit.
    memory: Literal["auto", "device", "stream"] = "auto"
    workers: int = Field(default=2, ge=0)  # processes that decode a streamed set
    cache: Path | None = None  # folder of decoded images; None: $SPR_OR_CACHE or ~/.cache/spr-or

    @model_validator(mode="after")
    def _streamed_only(self) -> DataRecipe:
        if self.random_resized_crop and (self.size is None or self.memory != "stream"):
            raise ValueError('random_resized_crop needs size = … and memory = "stream"')
        return self

    @model_validator(mode="after")
    def _mean_with_std(self) -> DataRecipe:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std belong together, one number for each channel")
        return self


class Schedule(_Section):
    """A learning rate over epochs (see `spr_or.training.schedule`)."""

    lr: float = Field(default=0.1, gt=0)  # the learning rate at the start
    schedule: Literal["steps", "cosine"] = "steps"  # how the learning rate falls
    milestones: tuple[int, ...] = ()  # epochs after which the rate is multiplied by gamma
    gamma: float = Field(default=0.1, gt=0, le=1)  # factor of the rate at each milestone
    warmup: int = Field(default=0, ge=0)  # epochs in which the rate rises linearly

    @model_validator(mode="after")
    def _milestones_fit(self) -> Schedule:
        if self.schedule == "cosine" and self.milestones:
            raise ValueError('milestones belong to schedule = "steps"; remove them or the cosine')
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        return self


class DenseRecipe(Schedule):
    """[dense]: the run without SPR that gives the bounds M and the accuracy to compare with."""

    epochs: int = Field(default=200, ge=0)  # number of epochs; 0: `weights` are not trained further
    # A state dict (.safetensors or .pt) to start from, or the name of a stored network.
    weights: Path | None = None


_Kind = Literal["filters", "neurons", "channels", "heads", "blocks"]


_LARGEST_LAM = 1e30  # single precision ends at 3e38, and the penalty has it squared away in sums


class SprRecipe(Schedule):
    """[spr]: the regularised phase. Its schedule goes on through [finetune], unless that has an lr."""

    epochs: int = Field(default=300, ge=0)  # number of epochs
    # gradient: SPR's gradient is added to the loss's, as in the paper; prox: ProxSGD, exact zeros.
    method: Literal["gradient", "prox"] = "gradient"
    # Which closed form: exact, as printed in the paper, or as in the authors' code of 2022.
    variant: Literal["exact", "printed", "authors2022"] = "exact"
    # Lambda, the strength of the penalty: a number, a share of the largest one such as "0.1 max", or
    # "auto". With a budget it is where lambda starts, and may be left out.
    lam: float | str = "auto"
    alpha: float = Field(ge=0, le=1)  # share of the penalty on squared weights
    # What is kept or removed as a whole, one kind or several that share no weights: channels contain
    # filters and neurons, blocks are residual branches. Layers that write the outputs keep everything.
    # Or chosen layers by name, each with "filters" or "neurons", as [spr.entities].
    entities: _Kind | tuple[_Kind, ...] | dict[str, Literal["filters", "neurons"]] = "filters"
    include_norm: bool = False  # BatchNorm's scale and shift belong to the entity
    # Importance of an entity: its share of the parameters, or 1.
    u: Literal["share", "uniform"] = "share"
    bounds: Literal["layer", "entity"] = "layer"  # whether M is that of the layer or of each entity
    bounds_every: int = Field(default=0, ge=0)  # renew M after this many epochs; 0: never
    lam_warmup: int = Field(default=0, ge=0)  # epochs in which lambda rises linearly
    # A budget: lambda is moved so that this share of all parameters goes, in percent.
    target_removed_pct: float | None = Field(default=None, gt=0, lt=100)
    # What the budget is a share of: parameters, multiplications, or the measured time of the layers.
    target_of: Literal["params", "macs", "latency"] = "params"
    # With a budget: the number of entities that a layer keeps is a multiple of this, or all of them.
    round_to: int = Field(default=1, ge=1)
    # With a budget: what a layer keeps at least, a number of entities or a share like 0.25; 0: a layer
    # that SPR has emptied may go.
    min_keep: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] = 1
    # How the budget is met at the end of the phase. rank: entities go in the order in which a larger
    # lambda would remove them. exact: those go whose prices have the smallest sum, as an integer program.
    cut: Literal["rank", "exact"] = "rank"
    # With cut = "exact": more budgets that it meets, in percent to remove, such as {macs = 50}.
    also_removed_pct: dict[
        Literal["params", "macs", "latency"], Annotated[float, Field(gt=0, lt=100)]
    ] = {}
    # With a budget, after the cut. swaps: entities that went come back for others of their layer, as
    # long as the loss on training images falls. layers: then also the sets, and weights, with which the
    # next convolution reproduces its output best.
    improve: Literal["none", "swaps", "layers"] = "none"
    ignored: tuple[
        str, ...
    ] = ()  # layers that keep everything, by name or pattern such as "layer4.*"
    start: Literal["dense", "scratch"] = "scratch"  # start from the dense weights, or from new ones
    zero_below: float = Field(default=1e-4, ge=0)  # method gradient: smaller weights count as zero
    # Method gradient: an entity with more than this share of zeros is removed.
    share: float = Field(default=0.99, ge=0, le=1)
    # Entities that are zero, and for which zero is optimal, leave the network between two epochs, and
    # fine-tuning trains the small network. With a smaller network epochs are shorter.
    shrink: bool = False
    shrink_after: int = Field(default=2, ge=1)  # epochs that an entity is zero before it leaves

    @model_validator(mode="before")
    @classmethod
    def _weights_is_u(cls, values: Any) -> Any:
        """Recipes from before ``u`` was renamed call it ``weights``."""
        if not isinstance(values, Mapping) or "weights" not in values:
            return values
        if "u" in values:
            raise ValueError("u and weights are one key under two names: remove weights")
        known = {"parameters": "share", "uniform": "uniform"}
        rest = {key: value for key, value in values.items() if key != "weights"}
        if values["weights"] not in known:
            raise ValueError(
                f"weights = {values['weights']!r}: it is called u now, which is share or uniform"
            )
        return rest | {"u": known[values["weights"]]}

    @model_validator(mode="after")
    def _prox_is_exact(self) -> SprRecipe:
        if self.method == "prox" and self.variant != "exact":
            raise ValueError(f'method = "prox" needs variant = "exact", got {self.variant!r}')
        return self

    @model_validator(mode="after")
    def _rounding_has_a_budget(self) -> SprRecipe:
        given = (self.round_to, self.min_keep, self.target_of, self.cut, self.improve)
        if self.target_removed_pct is None and given != (1, 1, "params", "rank", "none"):
            raise ValueError(
                "round_to, min_keep, target_of, cut and improve belong to a budget: "
                "set target_removed_pct"
            )
        return self

    @model_validator(mode="after")
    def _more_budgets_are_exact(self) -> SprRecipe:
        if self.also_removed_pct and self.cut != "exact":
            raise ValueError('also_removed_pct needs cut = "exact": a rank follows one budget')
        if self.target_of in self.also_removed_pct:
            raise ValueError(
                f"also_removed_pct names {self.target_of}, which target_removed_pct is about"
            )
        return self

    @field_validator("lam", mode="before")
    @classmethod
    def _lambda_is_understood(cls, lam: Any) -> Any:
        if not isinstance(lam, int | float | str):
            raise ValueError(f"must be a number or text, not a {type(lam).__name__}")
        share_of_max(lam, budget=False)
        if not isinstance(lam, str) and lam > _LARGEST_LAM:
            raise ValueError(f"must be at most {_LARGEST_LAM:g}, got {lam:g}")
        return lam

    @model_validator(mode="after")
    def _lambda_is_given(self) -> SprRecipe:
        if self.target_removed_pct is None and "lam" not in self.model_fields_set:
            raise ValueError(
                "say how much is to go, with target_removed_pct = 60 for instance, or set lam: "
                '"auto", a share of the largest lambda such as "0.1 max", or a number'
            )
        return self

    @model_validator(mode="after")
    def _lambda_can_move(self) -> SprRecipe:
        if self.target_removed_pct is not None and self.lam == 0:
            raise ValueError("target_removed_pct starts from lam, which must then be positive")
        if self.lam_warmup and self.lam_warmup >= self.epochs:
            raise ValueError(
                f"lam_warmup = {self.lam_warmup} must be shorter than epochs = {self.epochs}"
            )
        return self


class MethodRecipe(BaseModel):
    """[method]: who decides what goes; epochs, learning rate, entities and budget stay those of [spr].

    The other keys are those of the method.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = (
        SPR_ITSELF  # "spr", a name that `spr-or methods` lists, or your own as "module:name"
    )

    @model_validator(mode="after")
    def _method_has_these_keys(self) -> MethodRecipe:
        given = self.model_extra or {}
        keys = MethodKeys if self.name == SPR_ITSELF else find_method(self.name).keys
        for key in given:
            if key not in keys.model_fields:
                near = difflib.get_close_matches(key, keys.model_fields, n=1)
                known = ", ".join(keys.model_fields) or "no keys of its own"
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {known}"
                raise ValueError(f"{self.name} has no key {key!r}{hint}")
        try:
            keys.model_validate(given)
        except ValidationError as error:
            faults = (f"{f['loc'][0]}: {f['msg']}, got {f['input']!r}" for f in error.errors())
            raise ValueError("; ".join(faults)) from None
        return self


class FinetuneRecipe(_Section):
    """[finetune]: training in which the masked weights stay zero."""

    epochs: int = Field(default=200, ge=0)  # number of epochs
    # The learning rate at its start, from which it falls to 0 by a cosine; None: [spr]'s goes on.
    lr: float | None = Field(default=None, gt=0)
    # The weights it begins with: the last ones of the pruning phase, or those of the dense network.
    start: Literal["last", "dense"] = "last"
    # Weight of the dense network as a teacher; 0: no teacher.
    distill: float = Field(default=0.0, ge=0, le=1)
    # More teachers, as `dense.weights`; each of them and the dense network sees its share of a batch.
    teachers: tuple[Path, ...] = ()
    # Temperature of the teacher's and the student's softmax.
    temperature: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _teachers_have_a_weight(self) -> FinetuneRecipe:
        if self.teachers and not self.distill:
            raise ValueError(
                "teachers teach nothing with distill = 0: set distill = 0.7, for instance"
            )
        return self


class TrainRecipe(_Section):
    """[train]: settings of all phases."""

    momentum: float = Field(default=0.9, ge=0, lt=1)  # momentum of SGD
    weight_decay: float = Field(default=5e-4, ge=0)  # of all parameters, in addition to SPR
    nesterov: bool = False  # Nesterov's form of the momentum, which must be positive then
    # Share of the target that is spread evenly over the classes.
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> TrainRecipe:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov = true needs a momentum above 0, momentum = 0.9 for instance"
            )
        return self


class SpeedRecipe(_Section):
    """[speed]: what changes the time a run takes; of these keys only `amp` changes what is computed."""

    device: str = "auto"  # "auto": the accelerator if there is one, else "cpu"
    # On a CPU a long run measures a few steps, and takes what is fastest for each of the keys
    # threads, channels_last and compile that is left out. false: they have the values named there.
    auto: bool = True
    # CPU threads of torch; None: torch's default. With a hundred times as many as this it crashes.
    threads: int | None = Field(default=None, ge=1, le=1024)
    amp: Literal["off", "bf16"] = "off"  # bf16: forward and backward pass in bfloat16
    # Use the memory order that convolutions on GPUs, and on many CPUs, prefer; None: false.
    channels_last: bool | None = None
    # Use torch.compile, on a CPU in phases that are long enough to win its time back; None: false.
    compile: bool | None = None
    cuda_graph: bool = False  # replay each training step as one captured graph


class Recipe(_Section):
    """One run, or one for each of `seeds`.

    >>> recipe = parse_recipe({"model": "models.toy:mlp", "spr": {"lam": 1.0, "alpha": 0.1}})
    >>> recipe.spr.method, recipe.seeds
    ('gradient', (0,))
    """

    name: str = ""  # name of the run in reports; the file's name if empty
    note: str = ""  # shown at the top of the report, e.g. "smoke run"
    model: str  # import path of the function that builds the network, "package.module:function"
    model_kwargs: dict[str, Any] = {}  # arguments of that function
    # One run for each seed; torch's seeds have 64 bits, and those of epochs are 400,000 times as large.
    seeds: tuple[Annotated[int, Field(ge=0, le=2**40)], ...] = Field(default=(0,), min_length=1)
    data: DataRecipe = DataRecipe()
    train: TrainRecipe = TrainRecipe()
    dense: DenseRecipe = DenseRecipe()
    spr: SprRecipe
    method: MethodRecipe = MethodRecipe()
    finetune: FinetuneRecipe = FinetuneRecipe()
    speed: SpeedRecipe = SpeedRecipe()

    @model_validator(mode="after")
    def _rivals_have_a_budget(self) -> Recipe:
        if self.method.name != SPR_ITSELF and self.spr.target_removed_pct is None:
            raise ValueError(
                f"method {self.method.name} needs a budget: set spr.target_removed_pct = 60 for instance"
            )
        if self.method.name != SPR_ITSELF and (self.spr.cut, self.spr.improve) != ("rank", "none"):
            raise ValueError(
                f'method {self.method.name} has a cut of its own: set spr.cut = "rank" and '
                'spr.improve = "none"'
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Recipe:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {list(self.seeds)}")
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe: a file, or a shipped one by its name.

    ``overrides`` are "section.key=value" with the value as TOML writes it. A value that is no TOML
    is a string, so ``data.source=my/folder`` needs no quotes. Raises `RecipeError` for a missing
    file, broken TOML, and all that `parse_recipe` refuses.

    >>> load_recipe("digits", ["spr.lam=40"]).spr.lam
    40.0
    """
    return load_changed(path, [Change("--set ", override) for override in overrides])


class Change(NamedTuple):
    """A "section.key=value" that changes a recipe; ``origin`` stands before it in messages."""

    origin: str
    text: str

    @property
    def key(self) -> tuple[str, ...]:
        """Section and key."""
        return tuple(self.text.partition("=")[0].strip().split("."))

    def __str__(self) -> str:
        return f"{self.origin}{self.text}"


def load_changed(path: str | Path, changes: Sequence[Change]) -> Recipe:
    """As `load_recipe`; a fault that a change brings in is told with the change, not with the file."""
    try:
        path = find_shipped(path, "recipes")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is no valid TOML: {error}") from None
    values.setdefault("name", path.stem)
    for change in changes:
        _override(values, change)
    return _checked(values, str(path), changes)


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as nested dicts; ``where`` begins the messages.

    Raises `RecipeError` with one line for each fault.

    >>> parse_recipe({"model": "a:b", "spr": {"lam": 1, "alpha": 0, "epoch": 3}})
    Traceback (most recent call last):
    spr_or.training.recipe.RecipeError: recipe: [spr] has no key 'epoch'; did you mean 'epochs'?
    """
    return _checked(values, where)


def _checked(values: Mapping[str, Any], where: str, changes: Sequence[Change] = ()) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [
            _with_place(fault["loc"], _fault(fault["type"], fault["loc"], fault), where, changes)
            for fault in error.errors()
        ]
        raise RecipeError("\n".join(faults)) from None


def _with_place(
    location: tuple[int | str, ...], fault: str, where: str, changes: Sequence[Change]
) -> str:
    """A fault behind the change of its key, else the file and the changes of keys that it names."""
    for change in reversed(changes):
        if location[: len(change.key)] == change.key:
            return f"{change}: {fault.removeprefix('.'.join(change.key) + ': ')}"
    words = re.findall(r"\w+", fault)
    named = [
        str(change)
        for change in changes
        if change.key[: len(location)] == location and change.key[-1] in words
    ]
    return f"{where} with {', '.join(named)}: {fault}" if named else f"{where}: {fault}"


def _override(values: dict[str, Any], override: Change) -> None:
    key, separator, text = override.text.partition("=")
    *sections, last = key.strip().split(".")
    if not separator or not last or len(sections) > 1 and sections[0] != "model_kwargs":
        raise RecipeError(f"{override}: not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{override}: {section} is no section")
    target[last] = value


def _fault(kind: str, location: tuple[int | str, ...], fault: Mapping[str, Any]) -> str:
    keys = [str(part) for part in location if isinstance(part, str)]
    if kind == "extra_forbidden":
        *sections, key = keys
        place = f"[{sections[0]}]" if sections else "the top level"
        return f"{place} has no key {key!r}{_hint(sections[0] if sections else '', key)}"
    if kind == "missing":
        return f"{'.'.join(keys)} is missing"
    if kind == "model_type":
        return (
            f"{keys[0]} is a section, whose keys are set one by one: {', '.join(_keys()[keys[0]])}"
        )
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "tuple_type":  # TOML has no tuples
        message = 'a list is needed, as in ["one"] or [1, 2]'
    told = isinstance(fault["input"], dict) or ", got " in message
    got = "" if told else f", got {fault['input']!r}"
    return f"{'.'.join(map(str, location)) or 'the recipe'}: {message}{got}"


def _hint(section: str, key: str) -> str:
    """The nearest valid key: of the same section first, then anywhere."""
    fields = _keys()
    near = difflib.get_close_matches(key, fields[section], n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    dotted = {name: f"[{s}] {name}" if s else name for s in fields for name in fields[s]}
    near = difflib.get_close_matches(key, dotted, n=1)
    if near:
        return f"; did you mean {dotted[near[0]]}?"
    return f"; it has {', '.join(fields[section])}"


def _keys() -> dict[str, list[str]]:
    keys = {"": list(Recipe.model_fields)}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            keys[name] = list(field.annotation.model_fields)
    return keys


def import_factory(path: str) -> Callable[..., nn.Module]:
    """The function or class that ``"package.module:name"`` names.

    Raises `RecipeError` when the path has no colon, the module cannot be imported, or the module
    has no such name (the nearest one is given).

    >>> import_factory("models.toy:mlp").__name__
    'mlp'
    """
    try:
        factory = load_object(path)
    except ValueError as error:
        raise RecipeError(f"model: {error}, such as models.resnet_cifar:resnet20") from None
    except ImportError as error:
        raise RecipeError(f"model = {path!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise RecipeError(f"model = {path!r}: {error}") from None
    if not callable(factory):
        raise RecipeError(f"model = {path!r} is a {type(factory).__name__}, not a function")
    return factory


def build_model(recipe: Recipe) -> nn.Module:
    """The recipe's network with fresh weights; raises `RecipeError` when it cannot be built."""
    factory = import_factory(recipe.model)
    try:
        model = factory(**recipe.model_kwargs)
    except Exception as error:  # of somebody's own code
        raise RecipeError(
            f"model = {recipe.model!r} with model_kwargs = {recipe.model_kwargs}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"model = {recipe.model!r} gives a {type(model).__name__}, not a torch.nn.Module"
        )
    return model
