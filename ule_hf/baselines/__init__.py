"""The methods that ULE stands beside, one module each: a loss or a sampling on top of
:class:`ule_hf.classifier_trainer.ClassifierTrainer`, or a stage after one. Re-implemented from the papers.

Each module has ``train(task)``, which trains on a :class:`ule_hf.task.Task` and returns the trainer whose model is
shipped.
"""
