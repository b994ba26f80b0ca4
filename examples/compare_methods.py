"""Compare two methods over three seeds on the embedded model and data: half a minute on two cores.

Run it twice: the second time every result is there already.
"""

from bench import Matrix, load_results, run

matrix = Matrix(method=["flora", "linear_probe"], seed=[0, 1, 2], rounds=3, optimizer={"lr": 1e-3})
for result in run(matrix, results="results/compare"):
    print(result)

runs = load_results("results/compare")
print(runs.groupby("method")[["accuracy", "train_seconds", "payload_bytes"]].mean())
