"""How lmms-eval finds the model `video_ma2mba`: the entry point `lmms_eval.models` names `manifest`.

It imports no torch; lmms-eval imports the classes when the model is asked for by name.
"""

CLASSES = "modeling_video_ma2mba.eval.lmms_eval_plugin"


def manifest():
    """Return the `ModelManifest` of both request forms; chat is the one that lmms-eval takes by itself."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="video_ma2mba",
        simple_class_path=f"{CLASSES}.VideoMa2mbaSimple",
        chat_class_path=f"{CLASSES}.VideoMa2mbaChat",
    )
