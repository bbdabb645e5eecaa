// What the page says, in English and Chinese.

import { load, save } from "./local.js";

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
    cancel: "Cancel", branches: "Versions", before: "Previous version", after: "Next version",
    unfinished: "not complete", close: "Close",
    conversations: "Conversations", search: "Search", none: "Conversations are kept in this browser.",
    nothing: "Nothing found.", rename: "Rename", save: "Export", save_all: "Export all", import: "Import",
    remove: "Delete", removed: "“{title}” was deleted.", removed_many: "{n} conversations were deleted.", undo: "Undo",
    name: "Name", imported: "“{title}” was imported.", imported_many: "{n} conversations were imported.",
    no_import: "Nothing was imported: {file} holds no conversations. Expected {why}",
    empty_import: "Nothing was imported: {file} holds no conversation.",
    large_import: "Nothing was imported: {file} is larger than {n} MB.",
    not_kept: "This browser keeps nothing for this page: conversations are gone when it is left. Export saves them.",
    full: "This browser has no room left: the last messages are not kept. Export or delete some conversations.",
    unkept: "The last change could not be kept: {why}",
    gone: "This conversation was deleted in another tab.",
    attach: "Add pictures", pictures: "Pictures", attached: "{file} was added.", detach: "Remove {file}",
    detached: "{file} was removed.", blind: "The model {model} takes no pictures.",
    no_picture: "{file} was not added: it is no PNG, JPEG, WebP, GIF or BMP picture.",
    broken_picture: "{file} cannot be read as a picture: {why}",
    many_pictures: "{file} was not added: with it this conversation has {n} pictures, and this server takes up to {most} in a request.",
    large_picture: "{file} was not added: it has {n} MB, and this server takes pictures of up to {most} MB.",
    large_request: "{file} was not added: with it the pictures of this conversation have {n} MB as they are sent, and this server takes up to {most} MB in a request.",
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
    cancel: "取消", branches: "版本", before: "上一版本", after: "下一版本",
    unfinished: "未完成", close: "关闭",
    conversations: "对话列表", search: "搜索", none: "对话保存在此浏览器中。",
    nothing: "没有找到。", rename: "重命名", save: "导出", save_all: "全部导出", import: "导入",
    remove: "删除", removed: "已删除“{title}”。", removed_many: "已删除 {n} 个对话。", undo: "撤销",
    name: "名称", imported: "已导入“{title}”。", imported_many: "已导入 {n} 个对话。",
    no_import: "未导入任何内容：{file} 不是对话文件。应为 {why}",
    empty_import: "未导入任何内容：{file} 中没有对话。",
    large_import: "未导入任何内容：{file} 超过 {n} MB。",
    not_kept: "此浏览器不保存本页的内容：离开后对话即消失。可用“导出”保存。",
    full: "浏览器存储空间已满：最后的消息未保存。请导出或删除一些对话。",
    unkept: "最后的更改未能保存：{why}",
    gone: "此对话已在另一标签页中删除。",
    attach: "添加图片", pictures: "图片", attached: "已添加 {file}。", detach: "移除 {file}",
    detached: "已移除 {file}。", blind: "模型 {model} 不接受图片。",
    no_picture: "未添加 {file}：不是 PNG、JPEG、WebP、GIF 或 BMP 图片。",
    broken_picture: "无法将 {file} 作为图片读取：{why}",
    many_pictures: "未添加 {file}：加上它，此对话共有 {n} 张图片，此服务器每个请求不超过 {most} 张。",
    large_picture: "未添加 {file}：大小为 {n} MB，此服务器接受的图片不超过 {most} MB。",
    large_request: "未添加 {file}：加上它，此对话的图片发送时共 {n} MB，此服务器每个请求不超过 {most} MB。",
  },
};

let current = load("sophserve.language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

/** A phrase in the chosen language, with {name} filled in. */
export function t(name, values = {}) {
  const phrase = WORDS[current][name];
  return typeof phrase === "string" ? phrase.replace(/\{(\w+)\}/g, (_, key) => values[key]) : phrase;
}

/** Go on in the other language. */
export function switchLanguage() {
  current = current === "en" ? "zh" : "en";
  save("sophserve.language", current);
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
