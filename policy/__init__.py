"""The policy pack: what no stack may declare, judged by the engine before anything is changed."""
