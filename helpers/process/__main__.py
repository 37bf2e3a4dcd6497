"""The child of `call`: a function to call comes in as JSON, what it returned goes out as JSON."""
import importlib
import json
import sys

module, function, arguments = json.load(sys.stdin)
try:
    answer = dict(result=getattr(importlib.import_module(module), function)(*arguments))
except Exception as problem:
    answer = dict(error=f"{type(problem).__name__}: {problem}")
print(json.dumps(answer))
