"""`edgelung serve`: the model as a service over HTTP, on uvicorn and starlette (extra `serve`).

    socket ─► connection ─► app ─► exchange ─► batcher ─► pipeline ─► row or tensors

`connection` limits what a client can hold before its request has arrived, `exchange` limits the
request, and `batcher` the work. `protocol` parses and formats the Open Inference Protocol v2,
`access` decides who may connect. `server` starts and stops the service. Only `edgelung serve`
imports modules that need a library of the extra.
"""

# Names of the models: of encoded images, and what follows it in that of tiles. The model repository
# that `export --triton` writes has the same names, inputs and outputs.
IMAGES_MODEL, TILES_SUFFIX = "edgelung", "_tiles"
