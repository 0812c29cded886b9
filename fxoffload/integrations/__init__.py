"""Callbacks for trainers; each module needs its trainer, and nothing else imports it.

transformers   OffloadCallback for the Trainer of Hugging Face
lightning      OffloadCallback for the Trainer of Lightning
metrics        the numbers that both log
"""
