// What the page says, in English and Chinese.

const WORDS = {
  en: {
    skip: "Skip to the message", new: "New chat", panel: "Panel", language: "中文", model: "Model",
    conversation: "Conversation", ask: "Ask the model…", send: "Send", stop: "Stop",
    keys: "Enter sends · Shift+Enter starts a line · Esc stops",
    loading: "The model is loading", greeting: "What shall we talk about?",
    greeting_more: "Everything stays between this browser and this server.",
    examples: [
      "Tell me a story about a cat and a boat.",
      "What is prefix caching?",
      "Write a Python function that reverses a text.",
    ],
    server: "Server", generation: "Generated", prompts: "Prompts read", requests: "Requests",
    kv: "KV cache", hits: "Prefix cache", per_second: "tokens/s", running: "running", waiting: "waiting",
    used: "in use", of_tokens: "of tokens found",
    sampling: "Sampling", system: "System prompt", system_hint: "You are a helpful assistant.",
    temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Longest answer, tokens", seed: "Seed",
    auto: "default", random: "random", probabilities: "Token probabilities", reset: "Reset to defaults",
    key: "API key", key_more: "This server asks for a key. It is kept until this tab is closed.",
    key_wrong: "The server does not know this key.", enter: "Continue",
    you: "You", assistant: "Answer", copy: "Copy", copied: "Copied", again: "Regenerate", edit: "Edit",
    tokens: "Probabilities", text: "Text", reasoning: "Reasoning", thinking: "Reasoning…",
    ready: "ready", connecting: "connecting", offline: "no connection", busy: "loading", locked: "needs a key",
    stopping: "stopping", restarting: "restarting", stalled: "not responding", engine_dead: "stopped",
    count: "{n} tokens", speed: "{n} tokens/s", first: "first after {n} s", cached: "{n} cached",
    cut: "cut at the token limit", stopped: "stopped", answered: "The answer is complete.",
    lost: "The connection to the server was lost. Try again once it is back.",
  },
  zh: {
    skip: "跳到输入框", new: "新对话", panel: "面板", language: "English", model: "模型",
    conversation: "对话", ask: "向模型提问…", send: "发送", stop: "停止",
    keys: "Enter 发送 · Shift+Enter 换行 · Esc 停止",
    loading: "模型正在加载", greeting: "想聊点什么？",
    greeting_more: "内容只在此浏览器与此服务器之间传递。",
    examples: ["讲一个关于猫和船的故事。", "前缀缓存是什么？", "sophserve 是什么？"],
    server: "服务器", generation: "生成", prompts: "读取提示", requests: "请求",
    kv: "KV 缓存", hits: "前缀缓存", per_second: "词元/秒", running: "运行", waiting: "等待",
    used: "已用", of_tokens: "词元命中",
    sampling: "采样", system: "系统提示词", system_hint: "你是一个乐于助人的助手。",
    temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最长回答（词元）", seed: "随机种子",
    auto: "默认", random: "随机", probabilities: "词元概率", reset: "恢复默认",
    key: "API 密钥", key_more: "此服务器需要密钥。密钥只保留到关闭此标签页为止。",
    key_wrong: "服务器不认识此密钥。", enter: "继续",
    you: "你", assistant: "回答", copy: "复制", copied: "已复制", again: "重新生成", edit: "编辑",
    tokens: "概率", text: "文本", reasoning: "思考过程", thinking: "思考中…",
    ready: "就绪", connecting: "连接中", offline: "无法连接", busy: "加载中", locked: "需要密钥",
    stopping: "正在停止", restarting: "正在重启", stalled: "无响应", engine_dead: "已停止",
    count: "{n} 个词元", speed: "{n} 词元/秒", first: "首词元 {n} 秒", cached: "缓存 {n}",
    cut: "达到长度上限", stopped: "已停止", answered: "回答完毕。",
    lost: "与服务器的连接已断开，恢复后请重试。",
  },
};

let current = localStorage.getItem("sophserve.language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

/** A phrase in the chosen language, with {name} filled in. */
export function t(name, values = {}) {
  const phrase = WORDS[current][name];
  return typeof phrase === "string" ? phrase.replace(/\{(\w+)\}/g, (_, key) => values[key]) : phrase;
}

/** Go on in the other language. */
export function switchLanguage() {
  current = current === "en" ? "zh" : "en";
  localStorage.setItem("sophserve.language", current);
}

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return value.toLocaleString(current, { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** Fill in every data-t (text), data-label (accessible name) and data-hint (placeholder) below an element. */
export function translate(root) {
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-hint]")) element.placeholder = t(element.dataset.hint);
}
