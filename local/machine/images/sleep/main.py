"""Run until it is stopped."""

import time

while True:
    time.sleep(60)
