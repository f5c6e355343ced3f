"""Errors of a `config.json`: one kind, with the folder's name, whatever broke on the value inside transformers."""

from huggingface_hub.errors import StrictDataclassError

# What transformers and its configs raise for values of the wrong type, and for sizes that do not go together.
_RAISED = (StrictDataclassError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class ClearConfigErrors:
    """Mixin of this package's configs: reading a file with a wrong value raises a `ValueError` that names both."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        folder = pretrained_model_name_or_path
        try:
            config_dict, kwargs = super().get_config_dict(folder, **kwargs)
        except _RAISED as error:
            raise ValueError(f"{folder}: config.json is no object of fields: {error}") from error
        if not isinstance(config_dict, dict):
            raise ValueError(f"{folder}: config.json is no object of fields but a {type(config_dict).__name__}")
        if not isinstance(config_dict.get("model_type", ""), str):
            raise ValueError(f"{folder}/config.json: model_type={config_dict['model_type']!r:.80} is no text")
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        folder = str(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or cls.__name__)
        try:
            return super().from_dict(config_dict, **kwargs)
        except _RAISED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{folder:.300}: a value in config.json will not do: {reason:.500}") from error
