"""The prompt format of the paper's Table 5, as a Jinja template. Whitespace is part of it: there is none.

<|system|>You are a helpful assistant.<|endoftext|><|user|>{video}{question 1}<|endoftext|>
<|assistant|>{answer 1}<|endoftext|><|user|>{question 2}<|endoftext|>...   (without the line break)
"""

CHAT_TEMPLATE = (
    "{%- set end = eos_token if eos_token is defined and eos_token else '<|endoftext|>' -%}"
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|system|>You are a helpful assistant.' + end -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('role must be system, user or assistant, given: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'video' -%}{{- '<video>' -}}"
    "{%- elif part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- else -%}{{- raise_exception('content type must be video, image or text, given: ' + part['type']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- end -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
