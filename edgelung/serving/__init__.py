"""`edgelung serve`: the model as a service over HTTP, on uvicorn and starlette (extra `serve`).

    socket ─► connection ─► app ─► exchange ─► batcher ─► pipeline ─► row or tensors

`connection` limits what a client can hold before a request is there, `exchange` the request, and
`batcher` the work. `protocol` and `tensors` speak the Open Inference Protocol v2. `server` starts
and stops it all. Modules that import a library of the extra are imported by `edgelung serve` alone.
"""
