"""`python -m toughen`, as torchrun wants it."""

from toughen.cli import main

main()
