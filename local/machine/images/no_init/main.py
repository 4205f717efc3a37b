"""Work without calling wandb.init, like a program whose author forgot it."""

print(sum(n * n for n in range(10_000)))
