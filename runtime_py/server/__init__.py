"""The HTTP server of packages: the APIs of OpenAI and llama.cpp.

A request passes these modules, in this order:

    request_log  gives it an id, counts it, logs it
    access       checks Host, Origin and the API key
    body         reads its body within limits; cancels it when the client leaves
    app          finds its endpoint: chat, completions, llama_cpp, tokens, models
    schemas      check its fields
    admission    gives it a slot of the model, or a place in the queue
    texts        generate, in a thread (`thread_stream`), with a session of the package
"""
