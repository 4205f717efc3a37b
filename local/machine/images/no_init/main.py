"""Works without ever calling wandb.init, as programs do that forgot it."""

print(sum(n * n for n in range(10_000)))
