"""Functions as users of libraries write them. None knows the fabric: whoever is ended begins anew."""


def joblib_processes(steps):
    """Worker processes of joblib's own, which must not outlive the lease, and threads after them."""
    import time

    from joblib import Parallel, delayed

    def root(number):
        time.sleep(0.1)
        return number**0.5

    with Parallel(n_jobs=2, backend="loky") as parallel:
        found = parallel(delayed(root)(number) for number in range(10 * steps))
    return found + Parallel(n_jobs=2, backend="threading")(delayed(root)(number) for number in range(steps))


def dask_graphs(steps):
    """The same graph by dask's threads and by its processes."""
    import operator
    import time

    import dask

    def slow(number):
        time.sleep(0.1)
        return number + 1

    total = dask.delayed(sum)([dask.delayed(operator.mul)(dask.delayed(slow)(n), n) for n in range(8 * steps)])
    return total.compute(scheduler="threads", num_workers=2), total.compute(scheduler="processes", num_workers=2)


def tables(steps):
    """Of pandas and polars, grouped again and again."""
    import numpy as np
    import pandas as pd
    import polars as pl

    rng, sums = np.random.default_rng(2), []
    for _ in range(20 * steps):
        frame = pd.DataFrame({"key": rng.integers(0, 50, 100_000), "value": rng.integers(0, 9, 100_000)})
        mine = frame.groupby("key")["value"].sum()
        theirs = pl.from_pandas(frame).lazy().group_by("key").agg(pl.col("value").sum()).sort("key").collect()
        assert theirs["value"].to_list() == mine.to_list()
        sums.append(int(mine.max()))
    return sums


def tensors(steps):
    """A model of torch, its data loaded by processes of torch's own."""
    import torch

    torch.manual_seed(1)
    torch.set_num_threads(1)
    data = torch.utils.data.TensorDataset(torch.randn(512, 8), torch.randn(512, 1))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        for x, y in torch.utils.data.DataLoader(data, batch_size=32, num_workers=2):
            opt.zero_grad()
            (model(x) - y).square().mean().backward()
            opt.step()
    return [float(value) for value in torch.cat([each.detach().flatten() for each in model.parameters()])]


def models(steps):
    """Of scikit-learn, searched by processes, and of xgboost, boosted by threads."""
    import numpy as np
    import xgboost
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5))
    y = (x.sum(axis=1) > 0).astype(int)
    forest = RandomForestClassifier(10, random_state=0)
    search = GridSearchCV(forest, {"max_depth": list(range(1, 2 + steps))}, cv=3, n_jobs=2).fit(x, y)
    booster = xgboost.train({"max_depth": 2, "nthread": 2}, xgboost.DMatrix(x, y), num_boost_round=50 * steps)
    return search.cv_results_["mean_test_score"].tolist(), booster.predict(xgboost.DMatrix(x[:5])).tolist()


def records(steps):
    """Of pydantic, attrs and msgspec, made, checked and written out many times."""
    import attrs
    import msgspec
    import pydantic

    model = pydantic.create_model("Model", number=(int, ...), words=(list[str], ...))
    made = attrs.make_class("Made", {"number": attrs.field(validator=attrs.validators.ge(0))})
    struct = msgspec.defstruct("Struct", [("number", int)])
    total = 0
    for number in range(40_000 * steps):
        again = model.model_validate_json(model(number=number, words=["a"]).model_dump_json())
        total += msgspec.json.decode(msgspec.json.encode(struct(made(again.number).number)), type=struct).number
    return total
