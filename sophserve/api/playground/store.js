// The conversations that the browser keeps, in its database. Several tabs use it at once: each change is made to what
// is kept at that moment, in one transaction, and the other tabs are told of it.

import { newConversation, add, newId } from "./conversation.js";
import { load, save } from "./local.js";

const BEFORE = "sophserve.conversation"; // where version 0.1.0 kept its only one
const TABLE = "conversations";
const SLOWEST = 4000; // milliseconds

/** Use open() to make one. `kept` is false where the browser keeps nothing. */
export class Store {
  constructor(database) {
    this.database = database;
    this.memory = new Map();
    this.gone = new Set();
    this.onchange = () => {};
    this.channel = new BroadcastChannel("sophserve.conversations");
    this.channel.onmessage = ({ data }) => this.heard(data);
    database?.addEventListener("versionchange", () => database.close());
  }

  static async open() {
    let database = null;
    try {
      database = await new Promise((resolve, reject) => {
        const request = indexedDB.open("sophserve", 1);
        request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
        setTimeout(reject, SLOWEST); // a browser that never says either must not keep the page from working
      });
    } catch {
      // Forbidden, or broken: what is said is in memory only.
    }
    const store = new Store(database);
    await store.moveIn();
    return store;
  }

  get kept() {
    return Boolean(this.database);
  }

  async all() {
    if (!this.kept) return structuredClone([...this.memory.values()]);
    return this.transact("readonly", (table) => table.getAll());
  }

  /** One conversation, or undefined. */
  async get(id) {
    if (!this.kept) return structuredClone(this.memory.get(id));
    return this.transact("readonly", (table) => table.get(id));
  }

  /** Change what is kept of a conversation, or of this one where nothing is; returns what is kept then.
   *  One that was removed stays so. Throws what the browser throws, most likely that there is no room. */
  async change(conversation, alter) {
    if (this.gone.has(conversation.id)) return conversation;
    let kept;
    if (this.kept) {
      await this.transact("readwrite", (table, then) => {
        then(table.get(conversation.id), (found) => {
          kept = found ?? keepable(conversation);
          alter(kept);
          table.put(kept);
        });
      });
    } else {
      kept = this.memory.get(conversation.id) ?? structuredClone(keepable(conversation));
      alter(kept);
      this.memory.set(kept.id, kept);
    }
    this.tell({ id: conversation.id });
    return kept;
  }

  /** Keep a conversation with some of its messages as they are now. */
  async keep(conversation, messages) {
    return this.change(conversation, (kept) => {
      const changed = new Map(messages.map((message) => [message.id, keptMessage(message)]));
      kept.messages = kept.messages.map((message) => changed.get(message.id) ?? message);
      const known = new Set(kept.messages.map(({ id }) => id));
      for (const message of conversation.messages) if (!known.has(message.id)) kept.messages.push(keptMessage(message));
      const { leaf, system, parameters, updated } = conversation;
      Object.assign(kept, { leaf, system, parameters, updated });
    });
  }

  /** Add conversations, all or none. One whose id is taken gets another. */
  async addAll(conversations) {
    const added = conversations.map(keepable);
    if (this.kept) {
      await this.transact("readwrite", (table, then) => {
        then(table.getAllKeys(), (keys) => {
          rename(added, new Set(keys));
          for (const each of added) table.put(each);
        });
      });
    } else {
      rename(added, new Set(this.memory.keys()));
      for (const each of added) this.memory.set(each.id, each);
    }
    for (const { id } of added) {
      this.gone.delete(id);
      this.tell({ id });
    }
    return added;
  }

  async remove(id) {
    this.gone.add(id);
    this.memory.delete(id);
    if (this.kept) await this.transact("readwrite", (table) => table.delete(id));
    this.tell({ id, gone: true });
  }

  /** Let a call make requests to the table, of which then(request, work) goes on with the result; gives the result of
   *  the request that the call returns, once all is done. */
  transact(mode, call) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(TABLE, mode);
      const then = (request, work) => {
        request.onsuccess = () => {
          try {
            work(request.result);
          } catch (error) {
            reject(error);
            transaction.abort();
          }
        };
      };
      const request = call(transaction.objectStore(TABLE), then);
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }

  tell(message) {
    if (this.kept) this.channel.postMessage(message);
    this.onchange(message);
  }

  heard(message) {
    if (!this.kept) return;
    if (message.gone) this.gone.add(message.id);
    else this.gone.delete(message.id);
    this.onchange({ ...message, elsewhere: true });
  }

  /** Take over what version 0.1.0 kept. */
  async moveIn() {
    try {
      const messages = JSON.parse(load(BEFORE)) ?? [];
      const conversation = newConversation();
      for (const message of messages) add(conversation, conversation.leaf, message);
      if (messages.length) await this.addAll([conversation]);
      save(BEFORE, null);
    } catch {
      // What cannot be read or moved stays where it is.
    }
  }
}

/** A message as it is kept: the probabilities of its tokens are too many for that. */
function keptMessage({ tokens, ...message }) {
  return message;
}

function keepable(conversation) {
  return { ...conversation, messages: conversation.messages.map(keptMessage) };
}

function rename(conversations, taken) {
  for (const conversation of conversations) {
    if (taken.has(conversation.id)) conversation.id = newId();
    taken.add(conversation.id);
  }
}
