"""Recipes: what they accept, and how they say no."""

import json
from pathlib import Path

import pytest
import torch

from spr_or.training.recipe import (
    DenseRecipe,
    RecipeError,
    Schedule,
    build_model,
    import_factory,
    load_recipe,
    parse_recipe,
)
from spr_or.training.schedule import learning_rate

RECIPES = sorted((Path(__file__).parents[2] / "experiments" / "recipes").glob("*.toml"))
SMALL = {"model": "models.toy:mlp", "spr": {"lam": 1.0, "alpha": 0.1}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid_and_names_a_network(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert isinstance(build_model(recipe), torch.nn.Module)


def test_there_are_recipes() -> None:
    names = {"digits", "digits_exact", "digits_printed"}
    assert names | {"cifar10_resnet20", "cifar10_resnet20_smoke"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modell = "a:b"', r"r\.toml: the top level has no key 'modell'; did you mean 'model'\?"),
        ("[spr]\nlamda = 3", r"\[spr\] has no key 'lamda'; did you mean 'lam'\?"),
        ("[data]\nepochs = 3", r"\[data\] has no key 'epochs'; did you mean \[\w+\] epochs\?"),
        ("[trian]\nlr = 1", r"the top level has no key 'trian'; did you mean 'train'\?"),
        ("[spr]\nalpha = 1.5", r"spr\.alpha: .*less than or equal to 1, got 1\.5"),
        ("[spr]\nmethod = 'proximal'", r"spr\.method: .*'prox'.*got 'proximal'"),
        ("[spr]\nmethod = 'prox'\nvariant = 'printed'", 'needs variant = "exact"'),
        ("[dense]\nmilestones = [20, 10]", r"milestones must rise, got \[20, 10\]"),
        ("[dense]\nschedule = 'cosine'\nmilestones = [3]", "milestones belong to"),
        ("seeds = [0, 0]", "seeds must differ"),
        ("seeds = []", "seeds"),
        ("seeds = [18446744073709551616]", r"seeds\.0: .*less than or equal to 1099511627776"),
        ("seeds = [true]", r"seeds: must be a number, not true"),
        ("[spr]\nalpha = true", r"spr\.alpha: must be a number, not true"),
        ("[spr]\nmin_keep = true", r"spr\.min_keep: must be a number, not true"),
        ("[spr]\nlr = inf", r"spr\.lr: .*finite"),
        ("[spr]\nlam = 1e300", r"spr\.lam: must be at most 1e\+30, got 1e\+300"),
        ("[finetune]\ntemperature = inf", r"finetune\.temperature: .*finite"),
        ("[train]\nnesterov = true\nmomentum = 0.0", r"train: nesterov = true needs a momentum"),
        ("[speed]\nthreads = 100000", r"speed\.threads: .*1024"),
        ("[data]\nmean = [0.5]", "mean and std belong together"),
        ("[data]\nbatch_size = 'many'", r"data\.batch_size: .*got 'many'"),
        ("name = ", "no valid TOML"),
    ],
)
def test_a_faulty_recipe_says_where_and_what(text: str, message: str, tmp_path: Path) -> None:
    # Sections of the recipe under test replace those of the small one.
    base = {"model": 'model = "models.toy:mlp"', "spr": "[spr]\nlam = 1.0\nalpha = 0.1"}
    head = "" if text.startswith("modell") else base["model"] + "\n"
    if text.startswith("[spr]"):
        given = {line.split()[0] for line in text.splitlines()[1:]}
        rest = [line for line in base["spr"].splitlines() if line.split()[0] not in given]
        body = "\n".join(rest) + text.removeprefix("[spr]")
    else:
        body = text + "\n" + base["spr"]
    path = tmp_path / "r.toml"
    path.write_text(head + body)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="spr is missing"):
        parse_recipe({"model": "a:b"})
    with pytest.raises(RecipeError, match=r"no recipe at .*absent\.toml"):
        load_recipe(tmp_path / "absent.toml")


def test_set_changes_keys_with_the_types_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "models.toy:mlp"\n[spr]\nlam = 1.0\nalpha = 0.1\n')
    recipe = load_recipe(
        path,
        [
            "spr.lam=2e-1",
            "seeds=[3, 4]",
            "data.source=some/folder",  # no TOML, so a string
            "data.flip=true",
            "model_kwargs.hidden=[8]",
            "finetune.epochs = 7",
        ],
    )
    assert (recipe.spr.lam, recipe.seeds, recipe.data.source) == (0.2, (3, 4), "some/folder")
    assert recipe.data.flip and recipe.finetune.epochs == 7
    assert recipe.model_kwargs == {"hidden": [8]}
    for wrong, message in [
        ("spr.lam", "section.key=value"),
        ("=3", "section.key=value"),
        ("model.a=3", "no section"),
        ("spr.lamm=3", r"^--set spr\.lamm=3: \[spr\] has no key 'lamm'; did you mean 'lam'"),
        (
            "spr.lam=abc",
            r"^--set spr\.lam=abc: lam must be a number, \"auto\" or a share .*, got 'abc'$",
        ),
        ("spr=3", r"^--set spr=3: spr is a section, whose keys are set one by one: lr, "),
        ("spr.lam_warmup=999", r"^/.*r\.toml with --set spr\.lam_warmup=999: spr: lam_warmup = "),
    ]:
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, [wrong])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models.toy", "not an import path.*models.resnet_cifar:resnet20"),
        ("models.absent:net", r"cannot be imported: No module named 'models.absent'"),
        ("models.toy:mpl", "has no 'mpl'; did you mean 'mlp'"),
        ("models.resnet:_projection.x", "has no"),
        ("math:pi", "is a float, not a function"),
    ],
)
def test_a_wrong_import_path_says_so(path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        import_factory(path)


def test_a_network_of_ones_own_is_found_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_network.py").write_text(
        "import torch\ndef net(width): return torch.nn.Linear(width, 2)\n"
        "def not_a_net(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    recipe = parse_recipe({**SMALL, "model": "my_own_network:net", "model_kwargs": {"width": 3}})
    assert build_model(recipe).weight.shape == (2, 3)
    with pytest.raises(RecipeError, match="unexpected keyword argument 'depth'"):
        build_model(recipe.model_copy(update={"model_kwargs": {"depth": 3}}))
    with pytest.raises(RecipeError, match="gives a int, not a torch.nn.Module"):
        build_model(parse_recipe({**SMALL, "model": "my_own_network:not_a_net"}))


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            Schedule(lr=0.1, milestones=(3, 7)),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.1),
        ),
        (
            Schedule(lr=0.1, schedule="cosine"),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
        ),
    ],
)
def test_rates_are_those_of_torchs_schedulers(schedule: Schedule, make) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    for epoch in range(10):
        assert learning_rate(schedule, epoch, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_warmup_rises_to_the_rate_and_epochs_outside_are_refused() -> None:
    rates = [learning_rate(DenseRecipe(lr=0.4, warmup=3), e, 5) for e in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    with pytest.raises(ValueError, match="epoch 5 lies outside"):
        learning_rate(Schedule(), 5, 5)


@pytest.mark.parametrize(
    ("old", "new"), [("parameters", "share"), ("uniform", "uniform"), (None, "share")]
)
def test_recipes_written_before_u_had_its_name_mean_the_same(old: str | None, new: str) -> None:
    spr = {"lam": 1.0, "alpha": 0.1}
    weights = {} if old is None else {"weights": old}
    recipe = parse_recipe({"model": "a:b", "spr": spr | weights})
    assert recipe.spr.u == new
    assert recipe == parse_recipe({"model": "a:b", "spr": spr | {"u": new}})
    stored = json.loads(recipe.model_dump_json())
    assert "weights" not in stored["spr"] and parse_recipe(stored) == recipe


def test_u_and_its_old_name_are_not_mixed() -> None:
    spr = {"lam": 1.0, "alpha": 0.1, "weights": "uniform"}
    with pytest.raises(RecipeError, match=r"spr: u and weights are one key.*remove weights"):
        parse_recipe({"model": "a:b", "spr": spr | {"u": "share"}})
    with pytest.raises(RecipeError, match="it is called u now, which is share or uniform"):
        parse_recipe({"model": "a:b", "spr": spr | {"weights": "parameter"}})
