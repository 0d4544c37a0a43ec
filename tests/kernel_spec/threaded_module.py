"""A library that starts a thread at import, as some do; a fork server with it must not fork."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True, name="surprise").start()
