"""Libraries that others wrote, used in functions as their users do: models that are fitted, tables, tensors, records."""

import functools

import pytest

from tests.functions.afar import call
from tests.functions.conftest import far_side, project  # noqa: F401  # fixtures

np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def _far(far_side, monkeypatch):  # noqa: F811
    monkeypatch.setenv("AFAR_SOCKET", far_side)


def table():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 4))
    return x, (x @ np.array([1.0, -2.0, 0.5, 0.0]) > 0).astype(int)


@pytest.mark.parametrize("how", ["method", "partial", "pipeline", "search", "jobs"])
def test_a_model_of_scikit_learn_is_fitted_there_and_predicts_here(how):
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    x, y = table()
    model = {
        "method": linear.LogisticRegression(),
        "partial": linear.LogisticRegression(),
        "pipeline": make_pipeline(StandardScaler(), FunctionTransformer(lambda a: a * 2), linear.LogisticRegression()),
        "search": GridSearchCV(linear.LogisticRegression(), {"C": [0.1, 1.0]}, cv=3),
        "jobs": RandomForestClassifier(n_estimators=8, n_jobs=2, random_state=0),
    }[how]
    fit = functools.partial(model.fit, x) if how == "partial" else model.fit
    there = call(fit, y) if how == "partial" else call(fit, x, y)
    here = model.fit(x, y)
    assert type(there) is type(here)
    assert (there.predict(x) == here.predict(x)).all()
    assert there.score(x, y) > 0.9


def test_a_booster_of_xgboost_is_trained_there_and_predicts_here():
    xgboost = pytest.importorskip("xgboost")
    x, y = table()

    def train(x, y):
        import xgboost

        return xgboost.train({"max_depth": 3, "nthread": 1, "seed": 1}, xgboost.DMatrix(x, y), num_boost_round=5)

    there = call(train, x, y)
    assert np.allclose(there.predict(xgboost.DMatrix(x)), train(x, y).predict(xgboost.DMatrix(x)))
    kept = call(xgboost.XGBClassifier(n_estimators=5, nthread=1).fit, x, y)
    assert kept.score(x, y) > 0.9


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing", "sequential"])
def test_joblib_runs_in_parallel_inside_a_function(backend):
    pytest.importorskip("joblib")

    def job(backend):
        from joblib import Parallel, delayed

        with Parallel(n_jobs=2, backend=backend) as parallel:
            return parallel(delayed(pow)(n, 2) for n in range(8))

    assert call(job, backend) == [n * n for n in range(8)]


PARALLEL = """
    from concurrent.futures import ProcessPoolExecutor
    import multiprocessing, sys
    from joblib import Parallel, delayed
    from tests.functions.afar import call
    from app.util import Point, up
    def parallel(): return Parallel(n_jobs=2, backend="loky")(delayed(up)(Point(n)) for n in range(3))
    def pool(how):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(how)) as workers:
            return list(workers.map(up, map(Point, range(3))))
    if __name__ == "__main__":
        print(call(parallel) == [Point(n + 1) for n in range(3)])
        for how in ("spawn", "fork", "forkserver"):
            print(how, call(pool, how) == [Point(n + 1) for n in range(3)])
"""


def test_processes_that_a_function_starts_find_the_projects_modules(project):  # noqa: F811
    pytest.importorskip("joblib")
    files = {
        "app/__init__.py": "",
        "app/util.py": """
            import dataclasses
            @dataclasses.dataclass
            class Point:
                x: int
            def up(point):
                assert type(point) is Point
                return Point(point.x + 1)
        """,
        "main.py": PARALLEL,
    }
    assert project(files) == "True\nspawn True\nfork True\nforkserver True\n"


def test_tables_of_pandas_come_back_as_they_were():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "n": [1, 2, 2],
            "t": pandas.to_datetime(["2026-01-01", None, "2026-02-01"]),
            "c": pandas.Categorical(["a", "b", "a"]),
        },
        index=pandas.Index(["x", "y", "z"], name="k"),
    )
    pandas.testing.assert_frame_equal(call(lambda f: f.copy(), frame), frame)
    grouped = call(lambda f: f.groupby("c", observed=True)["n"].sum(), frame)
    assert grouped.to_dict() == {"a": 3, "b": 2}
    assert call(frame.n.sum) == 5


def test_tables_of_polars_come_back_as_they_were():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1, 2, None], "b": ["x", "汉", None], "c": [[1], [], None]})
    assert call(lambda f: f.with_columns(d=polars.col("a") * 2), frame).equals(
        frame.with_columns(d=polars.col("a") * 2)
    )
    lazy = frame.lazy().filter(polars.col("a") > 1)
    assert call(lazy.collect).equals(lazy.collect())
    assert call(lambda: lazy).collect().equals(lazy.collect())


def test_tensors_modules_and_optimizers_of_torch_come_back():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))

    def train(net, x):
        opt = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
        return net, opt.state_dict(), net[0].weight.grad, torch.float16

    x = torch.ones(8, 4)
    there, state, grad, dtype = call(train, net, x)
    assert torch.equal(there(x), train(net, x)[0](x))
    assert state["param_groups"][0]["lr"] == 0.1
    assert grad.shape == (3, 4)
    assert dtype is torch.float16
    for tensor in (
        torch.arange(3).to_sparse(),
        torch.zeros(2, 0),
        torch.ones(2, dtype=torch.bfloat16),
        torch.eye(2)[:, 1],
    ):
        found = call(lambda t: t, tensor)
        assert (found.layout, found.dtype, found.shape) == (tensor.layout, tensor.dtype, tensor.shape)


def test_random_generators_of_numpy_and_torch_go_on_where_they_were():
    torch = pytest.importorskip("torch")
    import random

    rng, own = np.random.default_rng(5), random.Random(5)
    twin, twin_own = np.random.default_rng(5), random.Random(5)
    rng.random(3), twin.random(3)
    assert (call(lambda r: r.random(4), rng) == twin.random(4)).all()
    assert call(own.random) == twin_own.random()
    state = torch.Generator().manual_seed(3).get_state()

    def draw(state):
        return torch.rand(2, generator=torch.Generator().set_state(state))

    assert torch.equal(call(draw, state), draw(state))
    assert call(lambda: np.random.SeedSequence(1).spawn(2)[1].entropy) == 1


RECORDS = """
    import enum, typing
    import attrs, pydantic, msgspec
    {imports}
    class Kind(enum.StrEnum):
        A = "a"
    class Inner(pydantic.BaseModel):
        n: int
    class Model(pydantic.BaseModel):
        kind: Kind = Kind.A
        inner: Inner
        tags: list[str] = pydantic.Field(default_factory=list)
        @pydantic.field_validator("tags")
        @classmethod
        def lower(cls, tags): return [tag.lower() for tag in tags]
        @property
        def double(self): return self.inner.n * 2
    @attrs.define
    class Record:
        n: int = attrs.field(validator=attrs.validators.ge(0))
        later: "Record | None" = None
    @attrs.frozen
    class Frozen:
        x: int
    {struct}
    class Pair(typing.NamedTuple):
        one: int
        two: str
    class Options(typing.TypedDict):
        rate: float
    def work(model, record, struct, pair):
        assert isinstance(model, Model) and isinstance(record, Record) and isinstance(struct, Struct)
        assert model.kind is Kind.A and isinstance(pair, Pair)
        return Model(inner=Inner(n=model.double), tags=["X"]), Record(record.n + 1, record), Struct(struct.a + 1), Pair(2, "b")
    def refused():
        return Model(inner=Inner(n="no"))
    def rejected():
        return Record(-1)
"""
STRUCT = "class Struct(msgspec.Struct, frozen=True): a: int; b: str = 'b'"
NONE = "@attrs.frozen\n    class Struct: a: int; b: str = 'b'"
ASK = """
    from tests.functions.afar import call
    from fabric.errors import JobFailed
    {imports}
    if __name__ == "__main__":
        model, record, struct, pair = call(work, Model(inner=Inner(n=2)), Record(1), Struct(1), Pair(1, "a"))
        print(type(model) is Model, model.inner == Inner(n=4), model.tags, model.kind is Kind.A)
        print(type(record) is Record, record == Record(2, Record(1)), type(struct) is Struct, struct == Struct(2), pair == Pair(2, "b"))
        print(call(lambda: Frozen(3)) == Frozen(3), call(lambda: Model) is Model)
        for job in (refused, rejected):
            try: call(job)
            except JobFailed as failure: print(type(failure.__cause__).__name__, str(failure).splitlines()[-1].strip()[:60])
"""
SAID = (
    "True True ['x'] True\nTrue True True True True\nTrue True\n"
    "ValidationError For further information visit https://errors.pydantic.dev/2."
)


@pytest.mark.parametrize("where", ["module", "main"])
def test_records_of_pydantic_attrs_and_msgspec_are_the_same_on_both_sides(project, where):  # noqa: F811
    pytest.importorskip("attrs")
    if where == "module":
        main = ASK.format(imports="from records import *")
        told = project({"records.py": RECORDS.format(imports="", struct=STRUCT), "main.py": main})
    else:
        told = project({"main.py": RECORDS.format(imports="", struct=NONE) + ASK.format(imports="")})
    assert told.startswith(SAID)
    assert told.splitlines()[-1].startswith("ValueError ValueError: 'n' must be >= 0")


def test_a_record_of_main_that_is_made_in_one_piece_is_refused(project):  # noqa: F811
    main = RECORDS.format(imports="from fabric.errors import InvalidRequest", struct=STRUCT)
    main += """
    from tests.functions.afar import call
    for job, args in ((lambda: Struct(1), ()), (len, ([Struct(1)],)), (Struct, (1,))):
        try: call(job, *args)
        except InvalidRequest as error: print(error.code, error.message)
    """
    lines = project({"main.py": main}).splitlines()
    assert len(lines) == 3
    assert (
        "variable 'Struct' of <lambda> (StructMeta) can't be pickled (a class of msgspec is made in one piece)"
        in lines[0]
    )
    assert all("define Struct in a module of your own, beside the script, and import it" in line for line in lines)
